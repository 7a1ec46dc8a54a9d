"""The engine: estimators, stopping, isolation, checkpoints."""

import math
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from registered import CONTINUOUS, PAIRS, SAMPLE, SMALL, by_gradients, few_rows

import experiments
import guides
import zoo
from experiments.svi import checkpoint
from experiments.svi.config import FitConfig
from experiments.svi.estimators import FitError, elbo, resolve
from experiments.svi.fit import fit_seeds
from experiments.svi.interrupt import Interrupted, noticing
from experiments.svi.loop import isolated
from experiments.svi.stopping import critical_value, cusum, flat

CPU = torch.device("cpu")


def small_mixture():
    data = (torch.rand(12, 6) < 0.4).to(torch.get_default_dtype())
    return zoo.load("bernoulli_mixture", data=data, num_components=3)


def gradients(problem, guide, index=None, **settings):
    """Gradients of one step by the estimator, for every parameter, flattened to one vector."""
    config = resolve(FitConfig(batch_size=None, **settings), problem)
    modules = torch.nn.ModuleList([problem.model, guide])
    modules.zero_grad()
    with isolated():
        bound = elbo(config, problem)
        loss = bound.loss_and_grads(problem.model, guide, problem.data.train, index)
    return loss, torch.cat([p.grad.to_dense().flatten() for p in modules.parameters()])


@pytest.mark.parametrize("guide_name", [g for m, g in PAIRS if m == "bernoulli_mixture"])
def test_score_function_is_unbiased_and_its_baseline_pays(guide_name, double):
    """Mean gradient over draws equals the enumerated one; variance is below that without."""
    problem = small_mixture()
    problem.model.double()
    guide = guides.build(guide_name, problem).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    half = torch.arange(0, 12, 2)
    _, exact = gradients(problem, guide, half, estimator="enumeration")
    score = {"estimator": "score", "num_particles": 4}
    draws = torch.stack([gradients(problem, guide, half, **score)[1] for _ in range(600)])
    se = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() <= 4.5 * se + 1e-12).all()

    if not list(guide.parameters()):
        return  # the score is only of the guide's parameters: there is nothing to steady
    optimizer = pyro.optim.SGD({"lr": 0.0})
    plain = []
    for _ in range(200):
        modules = torch.nn.ModuleList([problem.model, guide])
        modules.zero_grad()
        with isolated():
            pyro_elbo = pyro.infer.Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
            SVI(problem.model, guide, optimizer, pyro_elbo).loss_and_grads(
                problem.model, guide, problem.data.train, half
            )
        plain.append(torch.cat([p.grad.to_dense().flatten() for p in guide.parameters()]))
    ours = draws[:, -plain[0].numel() :].var(0).sum()
    assert ours < 0.5 * torch.stack(plain).var(0).sum()


def test_enumeration_is_the_exact_bound(double):
    problem = small_mixture()
    problem.model.double()
    guide = guides.build("amortized", problem).double()
    x = problem.data.train
    loss, _ = gradients(problem, guide, estimator="enumeration")
    with torch.no_grad():
        q = guide.rows(x)["z"].softmax(-1)
        joint = zoo.bernoulli_mixture.component_log_joint(problem.model, x)
        expected = (q * (joint - q.log())).sum()
    assert -loss == pytest.approx(expected.item(), rel=1e-9)


def test_auto_takes_the_best_estimator_and_the_config_says_so():
    for name, expected in (("bernoulli_mixture", "enumeration"), ("vae", "pathwise")):
        config = resolve(FitConfig(), zoo.load(name))
        assert (config.estimator, config.num_particles) == (expected, 1)
    assert resolve(FitConfig(estimator="score"), small_mixture()).num_particles == 8


@pytest.mark.parametrize(("name", "guide_name"), SAMPLE)
def test_same_seed_same_losses_bit_for_bit(name, guide_name):
    problem, options = few_rows(name), SMALL.get(guide_name, {})
    guide, again = (guides.build(guide_name, problem, **options) for _ in range(2))
    settings = {"steps": 25, "batch_size": 20} | by_gradients(problem)
    one = experiments.fit(problem, guide, seeds=[3], **settings)
    torch.rand(7)
    two = experiments.fit(problem, again, seeds=[4, 3], **settings)
    assert torch.equal(one.history[0], two.history[1])
    assert not torch.equal(two.history[0], two.history[1])
    assert all(torch.isfinite(one.history[0]))


def test_tenth_run_in_a_process_equals_the_first_and_leaves_no_trace():
    state = torch.get_rng_state()
    problem = zoo.load("gaussian_lvm")
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    guide = guides.build("mean_field", problem)
    runs = [experiments.fit(problem, guide, steps=5).history for _ in range(10)]
    assert all(torch.equal(run, runs[0]) for run in runs)
    assert not list(pyro.get_param_store().keys())
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    torch.set_rng_state(state)
    problem, guide = zoo.load("gaussian_lvm"), None
    after_build = torch.get_rng_state()
    guide = guides.build("mean_field", problem)
    state = torch.get_rng_state()
    experiments.fit(problem, guide, steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(after_build, state)


@pytest.mark.parametrize("register", [lambda *args: pyro.module(*args), pyro.module])
def test_function_models_with_pyro_param_and_pyro_module_start_afresh(register):
    """Parameters of a plain function are found, trained, and reset between seeds and runs.

    register: `pyro.module`, looked up when it is called or, as `from pyro import module`, before.
    """
    network = torch.nn.Linear(1, 2)

    def model(x=None, index=None):
        register("network", network)
        scale = pyro.param("scale", lambda: torch.rand(()) + 0.5, dist.constraints.positive)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z), scale).to_event(1), obs=rows)

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(40, 2) * 3))
    guide = guides.build("amortized", problem)
    fits = [experiments.fit(problem, guide, steps=40, seeds=2) for _ in range(2)]
    assert torch.equal(fits[0].history, fits[1].history)
    assert not torch.equal(*fits[0].history)
    scale = fits[0].models[0].constrained("scale").item()
    assert scale != fits[0].models[1].constrained("scale").item()
    assert fits[0].history[:, -5:].mean() > fits[0].history[:, :5].mean()
    for fitted in fits[0].models:  # the network too, of which each seed has its own
        trained = fitted.constrained("network$$$weight")
        assert not torch.equal(trained, network.weight)
    assert not torch.equal(*(m.constrained("network$$$weight") for m in fits[0].models))
    assert not list(pyro.get_param_store().keys())


def test_loss_that_is_not_finite_names_the_site_and_the_step(diverging_problem):
    guide = guides.build("mean_field", diverging_problem)
    with pytest.raises(FitError, match=r"step [1-9]\d*: the loss is nan at site 'x' of the model"):
        experiments.fit(diverging_problem, guide, steps=500, learning_rate=0.1)


def test_cusum_is_calibrated_and_has_power():
    """False alarms at the stated level; a fall is found; a rise counts as flat."""
    noise = torch.randn(4000, 40, dtype=torch.float64)
    level = 0.05
    alarms = torch.tensor([cusum(row) > critical_value(40, level) for row in noise]).double().mean()
    se = math.sqrt(level * (1 - level) / 4000)
    # Scaling by an estimate makes the tails heavier: measured 0.058 at a window of 40.
    assert abs(alarms - level) < 0.015 + 4 * se
    falling = noise - torch.linspace(0, 3, 40)
    assert torch.tensor([flat(row, level) for row in falling]).double().mean() < 0.05
    assert torch.tensor([flat(row, level) for row in noise + torch.linspace(0, 3, 40)]).all()
    assert flat(torch.ones(10))
    assert flat(1 - 1e-6 * torch.arange(10), tolerance=1e-4)
    assert not flat(1 - 1e-6 * torch.arange(10))


def test_stopping_rule_ends_a_run_that_has_converged():
    problem = zoo.load("gaussian_lvm", latent_dim=1)
    guide = guides.build("amortized", problem)
    options = {"batch_size": None, "learning_rate": 0.05, "decay": 1.0, "flat_window": 40}
    stopped = experiments.fit(problem, guide, steps=4000, **options)
    assert 100 < len(stopped.losses[0]) < 4000
    assert len(stopped.losses[0]) % 40 == 0
    zoo.gaussian_lvm.maximum_likelihood(problem.model, problem.data.train)
    best = problem.log_evidence(problem.data.train).mean()
    assert best - stopped.log_evidence(problem.data.train).mean() < 0.1


@pytest.mark.parametrize(("name", "guide_name"), SAMPLE)
def test_resumed_run_ends_with_identical_bits(name, guide_name, tmp_path):
    problem = few_rows(name)
    guide = guides.build(guide_name, problem)
    settings = {"steps": 23, "batch_size": 15, "checkpoint_seconds": 1e-9} | by_gradients(problem)
    config = resolve(FitConfig(**settings), problem)
    [whole] = fit_seeds(problem, guide, config, [0], CPU)

    def interrupt(step):
        if step == 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit_seeds(problem, guide, config, [0], CPU, tmp_path, report=interrupt)
    assert checkpoint.read(tmp_path / "seed-0.safetensors")[1]["step"] == 10
    torch.rand(3)
    [resumed] = fit_seeds(problem, guide, config, [0], CPU, tmp_path, resume=True)
    assert resumed.losses == whole.losses
    for key, value in whole.modules.state_dict().items():
        assert torch.equal(value, resumed.modules.state_dict()[key]), key
    assert not list(tmp_path.glob(".*"))


def test_checkpoint_of_another_run_is_refused(tmp_path):
    problem = zoo.load("vae")
    guide = guides.build("amortized", problem)
    experiments.fit(problem, guide, steps=3, out=tmp_path)
    path = tmp_path / "seed-0.safetensors"
    with pytest.raises(zoo.ZooError, match="another run: its config"):
        experiments.fit(problem, guide, steps=4, out=tmp_path, resume=True)
    other = zoo.load("vae", hidden=(7,))
    with pytest.raises(zoo.ZooError, match="another run: its problem"):
        experiments.fit(other, guides.build("amortized", other), steps=3, out=tmp_path, resume=True)
    linear = guides.build("amortized", problem, hidden=())
    with pytest.raises(zoo.ZooError, match="another model or guide"):
        experiments.fit(problem, linear, steps=3, out=tmp_path, resume=True)
    half = zoo.data.DataSet("half", problem.data.train[:700], problem.data.test)
    with pytest.raises(zoo.ZooError, match="another run: its problem"):
        experiments.fit(problem.having(data=half), guide, steps=3, out=tmp_path, resume=True)
    with pytest.raises(zoo.ZooError, match="is there: go on with --resume"):
        experiments.fit(problem, guide, steps=3, out=tmp_path)
    with pytest.raises(zoo.ZooError, match="name it with out"):
        experiments.fit(problem, guide, steps=3, resume=True)
    for content in (path.read_bytes()[:-40], b"alien", b""):
        path.write_bytes(content)
        with pytest.raises(zoo.ZooError, match="no checkpoint of this project, or truncated"):
            experiments.fit(problem, guide, steps=3, out=tmp_path, resume=True)


@pytest.mark.parametrize("guide_name", CONTINUOUS)
def test_fit_reports_one_answer_per_seed(guide_name):
    problem = zoo.load("gaussian_lvm")
    fit = experiments.fit(problem, guides.build(guide_name, problem), steps=5, seeds=2)
    x = problem.data.test
    assert fit.draws(3)["z"].shape == (2, 3, 1347, 2)
    assert fit.log_evidence(x).shape == (2, 450)
    assert [posterior.mean.shape for posterior in fit.posterior(x)] == [(450, 2)] * 2
    if guide_name == "delta":
        with pytest.raises(zoo.ZooError, match="has no log q: it is a point estimate of z"):
            _ = fit.elbo
        return
    assert fit.elbo.shape == (2,)
    torch.testing.assert_close(fit.elbo / 1347, fit.elbo_per_datum)


@pytest.mark.parametrize("guide_name", CONTINUOUS)
def test_numpy_rows_are_taken_like_tensors(guide_name):
    rows = np.random.default_rng(0).normal(size=(100, 5))
    problem = zoo.load("gaussian_lvm", data=rows)
    fit = experiments.fit(problem, guides.build(guide_name, problem), steps=3)
    assert torch.isfinite(fit.log_evidence(rows)).all()
    assert torch.equal(problem.log_evidence(rows[:2].tolist()), problem.log_evidence(rows[:2]))


def test_latents_outside_the_plate_are_not_trained_by_row_fits():
    def model(x=None, index=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(8, 1) + 9))
    guide = guides.build("mean_field", problem)
    x = torch.randn(5, 1) + 9
    fitted = experiments.fit_rows(problem, guide, x).guide
    assert torch.equal(fitted.sources["mean"].row, guide.sources["mean"].row)
    # The best loc lies half way between x and q's mean of `mean`, which is near 0 as built.
    best = (guide.sources["mean"].row[0] + x[:, 0]) / 2
    torch.testing.assert_close(fitted.rows(x)["z"][:, 0], best, rtol=0, atol=0.2)


def test_a_signal_that_is_ignored_stays_ignored():
    """Worker processes ignore the keyboard; a second signal does not wait for the step's end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noticing() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted()
            signal.raise_signal(signal.SIGTERM)
            assert interrupted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seeds", [0, -1, [], [1, 1], [-2], 2.5, True])
def test_bad_seeds(seeds):
    problem = zoo.load("gaussian_lvm")
    with pytest.raises(zoo.ZooError, match="seeds"):
        experiments.fit(problem, guides.build("amortized", problem), steps=1, seeds=seeds)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "guide_name"), SAMPLE)
def test_gpu_reaches_the_bound_of_the_cpu(name, guide_name):
    problem = few_rows(name)
    guide = guides.build(guide_name, problem)
    cpu, gpu = (
        experiments.fit(problem, guide, steps=400, device=device) for device in ("cpu", "cuda")
    )
    bounds = [fit.history[0, -50:].mean() for fit in (cpu, gpu)]  # a point estimate has no elbo
    torch.testing.assert_close(*bounds, rtol=0, atol=1.0)


@pytest.mark.gpu
def test_comparison_on_a_gpu_measures_and_resumes(tmp_path):
    settings = {"fit": {"steps": 20}, "measure": {"num_draws": 4}, "device": "cuda", "seeds": 1}
    found = experiments.compare(out=tmp_path, **settings)
    assert not found.failed
    assert experiments.compare(out=tmp_path, resume=True, **settings).records == found.records

"""Gradient estimators for discrete latents: unbiased where they say so, alike in every engine."""

import json
import math
from functools import cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from away import moved
from steps import CPU, assert_close, parameters, started, train, train_eagerly
from torch import nn

import experiments
import guides
import zoo
from experiments.benchmarks import gradients
from experiments.benchmarks.exact_gradients import CONTENDERS, Case, _pairs, row
from experiments.svi import checkpoint, discrete
from experiments.svi.baselines import DECAY, Running
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from experiments.svi.fit import fit_seeds
from experiments.svi.interrupt import Interrupted
from experiments.svi.loop import isolated
from experiments.svi.run import Run, as_module
from zoo.testing import drawn_sites, traced, values_of

KINDS = sorted(discrete.KINDS)
OWN = ["nvil", "relax", "running_mean"]
BY_STATE = ["nvil", "running_mean"]
RANDOM = [contender for contender in CONTENDERS if contender.random]
QUANTILE = 3.3  # of a normal, exceeded either way once in 1000


@pytest.fixture(scope="module")
def measured():
    """row(contender), each found once."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    return cache(partial(row, Case()))


@pytest.mark.slow
@pytest.mark.parametrize("contender", RANDOM, ids=lambda contender: contender.name)
def test_mean_gradient_of_ten_switches_is_the_exact_one(measured, contender):
    """By 10^5 draws, within 4 standard errors in each coordinate; what is biased is seen to be."""
    found = measured(contender)
    assert found["draws"] == 10**5
    if contender.biased:
        assert found["largest_z"] > 8
        assert found["bias_guide"] > 3 * found["floor_guide"]
        return
    assert found["largest_z"] <= 4
    assert found["largest_z_of_directions"] <= 4
    assert found["mean_square_z"] == pytest.approx(1, abs=0.4)
    for part in ("model", "guide"):
        assert found[f"bias_{part}"] < 1.6 * found[f"floor_{part}"]
    assert found["floor_guide"] < 0.04  # so that a bias of a tenth would be seen


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rws", "gumbel_softmax"])
def test_bias_falls_with_draws_or_temperature(measured, estimator):
    """To a half at least, from 2 draws to 8, and from a temperature of 0.5 to 0.1."""
    pair = [c for c in CONTENDERS if c.settings["estimator"] == estimator]
    large, small = (measured(contender)["bias_guide"] for contender in pair)
    assert small < 0.5 * large
    assert large > 0.1


@pytest.mark.slow
def test_baselines_and_control_variates_pay(measured):
    """In the variance of the guide's gradient, at one draw: each halves that of the one before."""
    alone = {c.settings["estimator"]: c for c in RANDOM if c.settings["num_particles"] == 1}
    names = "relax", "nvil", "running_mean"
    best, middle, worst = (measured(alone[name])["variance_guide"] for name in names)
    assert best < 0.7 * middle < 0.7 * 0.7 * worst


def test_exact_bound_of_two_draws_is_the_sum_over_pairs(double):
    """The oracle of vimco, pair by pair, for three states with weights of their own."""
    log_weight, q = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.2, 0.5, 0.3])
    brute = sum(
        q[i] * q[j] * math.log((math.exp(log_weight[i]) + math.exp(log_weight[j])) / 2)
        for i in range(3)
        for j in range(3)
    )
    assert _pairs(log_weight, q).item() == pytest.approx(brute.item(), rel=1e-12)


def test_the_table_says_what_is_biased_and_what_it_costs(tmp_path, monkeypatch):
    few = [c for c in CONTENDERS if c.name in ("enumeration, K = 1", "disarm, K = 2", "rws, K = 2")]
    monkeypatch.setattr(gradients, "CONTENDERS", few)
    monkeypatch.setattr(gradients, "row", lambda case, contender: row(case, contender, 3, 2))
    monkeypatch.setattr(gradients, "milliseconds", partial(gradients.milliseconds, rounds=1))
    gradients.main(["--out", str(tmp_path)])
    lines = (tmp_path / "gradients.md").read_text().splitlines()
    names = [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:]
    assert names == ["| enumeration, K = 1", "| disarm, K = 2", "| rws, K = 2 (biased)"]
    rows = json.loads((tmp_path / "gradients.json").read_text())
    assert [found["draws"] for found in rows] == [2, 6, 6]
    assert rows[0]["bias_guide"] < 1e-12 < rows[1]["bias_guide"]
    assert all(found["milliseconds_eager"] > 0 < found["milliseconds_recorded"] for found in rows)


# One step.


def small(latent_dim=3, num_data=12, guide_name="amortized", width=5):
    """A problem of a few switches and a guide, both away from their start."""
    data = (torch.rand(num_data, width) < 0.4).to(torch.get_default_dtype())
    problem = zoo.load("bernoulli_lvm", data=data, latent_dim=latent_dim)
    options = {"hidden": ()} if guide_name == "amortized" else {}
    guide = guides.build(guide_name, problem, **options)
    return problem.having(model=moved(problem.model)), moved(guide)


def step(problem, guide, config, x, index=None, seed=0, own=None):
    """(loss, gradients of model and guide, of what is the estimator's own; the bound) of a step."""
    modules = nn.ModuleDict({"model": problem.model, "guide": guide})
    own = own or discrete.module(config, problem)
    if own is not None:
        modules["estimator"] = own.to(torch.get_default_dtype())
    torch.manual_seed(seed)
    with isolated():
        bound = elbo(config, problem, modules)
        loss, surrogate = bound.terms(problem.model, guide, x, index)
    names = [n for n, _ in modules.named_parameters()]
    values = list(modules.parameters())
    found = torch.autograd.grad(surrogate, values, allow_unused=True)
    kept = {n: torch.zeros_like(v) for n, v in zip(names, values, strict=True)}
    kept |= {n: g for n, g in zip(names, found, strict=True) if g is not None}
    ours = {n: g for n, g in kept.items() if not n.startswith("estimator.")}
    theirs = {n: g for n, g in kept.items() if n.startswith("estimator.")}
    return loss, ours, theirs, bound


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("estimator", KINDS)
def test_reported_loss_is_that_of_the_elbo(estimator, double):
    """Its mean is minus the exact ELBO of all data, whatever the estimator's own objective."""
    problem, guide = small()
    exact = resolve(FitConfig(estimator="enumeration"), problem)
    expected = step(problem, guide, exact, problem.data.train)[0]
    config = resolve(FitConfig(estimator=estimator), problem)
    x, copies = problem.data.train, 400
    losses = [
        step(problem, guide, config, x.repeat(copies, 1), seed=seed)[0] / copies
        for seed in range(30)
    ]
    losses = torch.stack(losses)
    se = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - expected) < 4 * se
    assert se < 0.01 * abs(expected)


@pytest.mark.parametrize("estimator", KINDS)
def test_a_minibatch_counts_for_all_data(estimator, double):
    """By the same noise: N / b times the gradient of its rows alone, inside no logarithm.

    The loss of what is the estimator's own is a mean over rows, and is not scaled.
    """
    problem, guide = small()
    config = resolve(FitConfig(estimator=estimator), problem)
    x, index = problem.data.train, torch.tensor([7, 2, 5])
    own = discrete.module(config, problem)
    part = step(problem, guide, config, x, index, own=own)
    alone = step(problem, guide, config, x[index], own=own)
    torch.testing.assert_close(part[0], 4 * alone[0])
    torch.testing.assert_close(flat(part[1]), 4 * flat(alone[1]))
    for name, gradient in part[2].items():
        torch.testing.assert_close(gradient, alone[2][name])
    for name, value in part[3].updates.items():
        torch.testing.assert_close(value, alone[3].updates[name])


@pytest.mark.parametrize("estimator", KINDS)
def test_data_do_not_mix(estimator, double):
    """A row's free parameters move as they do whatever the other rows are, by the same noise."""
    problem, guide = small(guide_name="mean_field")
    config = resolve(FitConfig(estimator=estimator), problem)
    x = problem.data.train
    other = x.clone()
    other[1:] = 1 - other[1:]
    own = discrete.module(config, problem)
    [name] = [n for n, _ in guide.named_parameters()]
    first, second = (
        step(problem, guide, config, rows, own=own)[1][f"guide.{name}"] for rows in (x, other)
    )
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1:], second[1:])


def in_se(one, other):
    """Differences of mean gradients, of blocks (m, p) each, in standard errors; 0 if both vanish.

    other: also the exact gradient, (p,).
    The errors themselves must be small beside the gradients, so that a mistake would be seen.
    """
    other = other.expand(2, -1) if other.dim() == 1 else other
    off = one.mean(0) - other.mean(0)
    se = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert se.norm() < 0.05 * other.mean(0).norm()
    return torch.where(off.abs() < 1e-12, 0.0, off / se)


def blocks(problem, guide, config, count, copies=300):
    """Mean gradients of model and guide over `copies` draws of each datum: (count, p)."""
    x = problem.data.train.repeat(copies, 1)
    found = [step(problem, guide, config, x, seed=seed)[1] for seed in range(count)]
    return torch.stack([flat(gradient) / copies for gradient in found])


def score_of_draws(problem, guide, config):
    """Sum over data of d log q(z) in the guide, at the draws that a step of that config makes."""
    torch.manual_seed(0)
    with isolated():
        q = guide.distribution("z", guide.rows(problem.data.train)["z"])
        return torch.autograd.grad(q.log_prob(pyro.sample("z", q)).sum(), list(guide.parameters()))


@pytest.mark.parametrize("estimator", BY_STATE)
def test_a_running_mean_is_taken_off_the_signal(estimator, double):
    """Another mean c + 2 changes the gradient by 2 d log q, at the same draws."""
    problem, guide = small()
    config = resolve(FitConfig(estimator=estimator), problem)
    own = discrete.module(config, problem)
    found = []
    for mean in (1.0, 3.0):
        running = own if isinstance(own, Running) else own.running
        running.total.fill_(0.5 * mean)
        running.weight.fill_(0.5)
        assert running().item() == pytest.approx(mean)
        found.append(step(problem, guide, config, problem.data.train, own=own)[1])
    for (name, _), score in zip(
        guide.named_parameters(), score_of_draws(problem, guide, config), strict=True
    ):
        change = found[1][f"guide.{name}"] - found[0][f"guide.{name}"]
        torch.testing.assert_close(change, 2 * score)


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_the_running_mean_is_that_of_the_steps_losses(engine, double):
    """Of the signals, which are the bounds a datum, with weights that fall by DECAY a step."""
    problem, guide = small()
    settings = {"steps": 7, "batch_size": 4, "estimator": "running_mean", "engine": engine}
    for run in train(started(problem, guide, (3, 4), **settings), problem):
        signals = -torch.tensor(run.losses, dtype=torch.get_default_dtype())
        weights = (1 - DECAY) * DECAY ** torch.arange(6, -1, -1)
        mean = (weights * signals).sum() / weights.sum()
        assert run.modules["estimator"]().item() == pytest.approx(mean.item(), rel=1e-5)
        assert run.modules["estimator"].weight.item() == pytest.approx(1 - DECAY**7)


def test_the_network_of_nvil_learns_the_squared_error(double):
    """Its gradient is that of the mean of (l - C(x) - c)^2, l the signal, of nothing else."""
    problem, guide = small()
    config = resolve(FitConfig(estimator="nvil", num_particles=3), problem)
    own, x = discrete.module(config, problem), problem.data.train
    own.running.total.fill_(-0.3)
    own.running.weight.fill_(0.1)
    _, _, found, _ = step(problem, guide, config, x, own=own)
    with torch.no_grad():
        torch.manual_seed(0)
        q = guide.distribution("z", guide.rows(x)["z"])
        z = q.sample((3,))
        signal = problem.log_joint(problem.model, x, z) - q.log_prob(z)
    loss = (signal - own.network((x), None)[..., 0] + 3.0).square().mean()
    for (name, _), gradient in zip(
        own.named_parameters(), torch.autograd.grad(loss, list(own.parameters())), strict=True
    ):
        torch.testing.assert_close(found[f"estimator.{name}"], gradient)


def test_the_control_variate_learns_to_lower_the_variance(double):
    """The gradient of its parameters, by draws, is that of the variance, by finite differences."""
    problem, guide = small(2, 2)
    config = resolve(FitConfig(estimator="relax"), problem)
    own, x, copies = discrete.module(config, problem), problem.data.train, 20_000
    moved(own, 0.2)
    rows, scale = x.repeat(copies, 1), "scale"

    def mean_square(value):
        """Mean square a datum of the gradient in the logits, by the same noise at every value."""
        with torch.no_grad():
            own.get_parameter(scale).fill_(value)
        table = guides.build("mean_field", problem.having(data=zoo.data.as_dataset(rows)))
        with torch.no_grad():
            table.sources["z"].rows.weight.copy_(guide.rows(rows)["z"])
        gradient = step(problem, table.double(), config, rows, own=own)[1]
        [weight] = [g for n, g in gradient.items() if n.startswith("guide.")]
        return weight.square().sum(-1).mean().item()

    start = own.get_parameter(scale).item()
    slope = (mean_square(start + 1e-4) - mean_square(start - 1e-4)) / 2e-4
    with torch.no_grad():
        own.get_parameter(scale).fill_(start)
    _, _, found, _ = step(problem, guide, config, rows, own=own)
    assert found["estimator.scale"].item() == pytest.approx(slope, rel=1e-4)
    assert abs(slope) > 1e-3


# Guides and models of a user's own.


def own_model(scalar):
    """(problem, guide): functions, switches by their probabilities; scalar: one switch a datum."""
    shape = () if scalar else (2,)

    def model(x=None, index=None):
        weight = pyro.param("weight", lambda: torch.tensor([1.5, -1.0]))
        with zoo.datum(x, index) as rows:
            prior = dist.Bernoulli(torch.full(shape, 0.3))
            z = pyro.sample("z", prior if scalar else prior.to_event(1))
            mean = (z[..., None] if scalar else z) * weight
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    def guide(x=None, index=None):
        weight = pyro.param("slope", lambda: 0.5 * torch.ones(2, *shape))
        with zoo.datum(x, index) as rows:
            q = dist.Bernoulli((rows @ weight).sigmoid())
            pyro.sample("z", q if scalar else q.to_event(1))

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(3, 2) + 1))
    return problem, as_module(guide, problem)


def summed_gradient(problem, guide, states):
    """The exact gradient of the loss: (p,); states: all values of the switches."""
    x, loss = problem.data.train, 0.0
    with isolated():
        for state in torch.tensor(states, dtype=x.dtype):
            z = {"z": state.expand(len(x), *state.shape)}
            log_p, log_q = (
                sum(site["log_prob"] for site in drawn_sites(traced(program, x, None, z)))
                for program in (problem.model, guide)
            )
            loss = loss - (log_q.exp() * (log_p - log_q)).sum()
    parameters = [*problem.model.parameters(), *guide.parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("estimator", sorted(set(KINDS) - set(discrete.BIASED) - {"vimco"}))
def test_programs_of_a_users_own(estimator, scalar, double):
    """The mean gradient is the enumerated one, for switches given by probabilities."""
    problem, guide = own_model(scalar)
    expected = summed_gradient(
        problem, guide, [0, 1] if scalar else [[0, 0], [0, 1], [1, 0], [1, 1]]
    )
    config = resolve(FitConfig(estimator=estimator), problem)
    assert in_se(blocks(problem, guide, config, 60, 500), expected).abs().max() < 4


def mixture(num_data=3):
    """(problem, guide) with a cluster and a place of each datum: discrete and continuous."""
    data = (torch.rand(num_data, 4) < 0.5).to(torch.get_default_dtype())
    options = {"num_components": 2, "latent_dim": 1, "hidden": ()}
    problem = zoo.load("gmvae", data=data, **options)
    guide = moved(guides.build("top_down", problem, hidden=()), 0.3)
    return problem.having(model=moved(problem.model)), guide


@pytest.mark.parametrize("estimator", ["score", "running_mean", "nvil"])
def test_continuous_latents_beside_discrete_ones_keep_their_path(estimator, double):
    """Where y is drawn and z has a path, the mean gradient is that of the sum over y."""
    problem, guide = mixture()
    found, expected = (
        blocks(problem, guide, resolve(FitConfig(estimator=name), problem), 60)
        for name in (estimator, "enumeration")
    )
    assert in_se(found, expected).abs().max() < 4


def pair_bound(problem, guide, x, copies):
    """The bound of two draws of (y, z), the pairs of y summed over and z drawn, by its own code."""
    rows = x.repeat(copies, 1)
    log_q_y = guide.sources["y"](rows, None).log_softmax(-1)
    log_weight = []
    for y in range(2):
        label = torch.full((len(rows),), y)
        seen = nn.functional.one_hot(label, 2).to(rows)
        each = []
        for _ in range(2):
            loc, log_scale = guide.sources["z"](rows, None, seen).unbind(-1)
            noise = torch.randn_like(loc)
            z = loc + log_scale.exp() * noise
            log_q = -0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi) + log_q_y[:, y]
            each.append(problem.log_joint(problem.model, rows, z[:, None], label) - log_q)
        log_weight.append(each)
    pairs = [
        (log_q_y[:, a] + log_q_y[:, b]).exp()
        * (torch.logaddexp(log_weight[a][0], log_weight[b][1]) - math.log(2))
        for a in range(2)
        for b in range(2)
    ]
    return sum(pairs).sum() / copies


def test_vimco_of_discrete_and_continuous_latents(double):
    problem, guide = mixture()
    x, copies = problem.data.train, 300
    config = resolve(FitConfig(estimator="vimco", num_particles=2), problem)
    parameters, expected = [*problem.model.parameters(), *guide.parameters()], []
    for seed in range(100):
        torch.manual_seed(1000 + seed)
        gradient = torch.autograd.grad(-pair_bound(problem, guide, x, copies), parameters)
        expected.append(torch.cat([g.flatten() for g in gradient]))
    found = blocks(problem, guide, config, 60)
    assert in_se(found, torch.stack(expected)).abs().max() < 4


class PlaceFirst(nn.Module):
    """z ~ Normal(0, 1); y ~ Categorical by z; x ~ Normal(z + y, 1)."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.5, -0.3, 0.1]))

    def forward(self, x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            y = pyro.sample("y", dist.Categorical(logits=z[..., None] * self.slope))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=None if rows is None else rows[:, 0])

    def log_joint(self, x, z, y):
        """log p(x, z, y), (..., n) nats, by plain torch."""
        log_y = (z[..., None] * self.slope).log_softmax(-1).gather(-1, y[..., None])[..., 0]
        return -0.5 * (z**2 + (x[:, 0] - z - y) ** 2) - math.log(2 * math.pi) + log_y


def place_first():
    """(problem, guide) whose discrete latent hangs on the continuous one before it."""
    model = PlaceFirst()
    data = zoo.data.as_dataset(torch.randn(3, 1))
    problem = zoo.Problem(model, data, log_joint=PlaceFirst.log_joint)
    return problem, moved(guides.build("top_down", problem, hidden=()), 0.3)


@pytest.mark.parametrize("make", [mixture, place_first])
def test_reweighted_wake_sleep_takes_draws_as_they_are(make, double):
    """By its formula at the same draws, also for continuous latents: no path leads through them."""
    problem, guide = make()
    x, own = problem.data.train, problem.model
    config = resolve(FitConfig(estimator="rws", num_particles=4), problem)
    found = flat(step(problem, guide, config, x)[1])
    torch.manual_seed(0)
    with isolated():
        drawn = {n: z.detach() for n, z in values_of(traced(guide, x, num_draws=4)).items()}
        sites = drawn_sites(traced(guide, x, values=drawn, num_draws=4))
        log_p, log_q = problem.log_joint(own, x, **drawn), sum(s["log_prob"] for s in sites)
    share = (log_p - log_q).detach().softmax(0)
    loss = -(share * log_p + (share - 1 / 4) * log_q).sum()
    gradients = torch.autograd.grad(loss, [*own.parameters(), *guide.parameters()])
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in gradients]))


# Whole runs.


def pair(guide_name="amortized"):
    """Fifteen rows, three switches."""
    return small(3, 15, guide_name)


@pytest.mark.usefixtures("uncompiled", "double")
@pytest.mark.parametrize(
    "guide_name", [pytest.param("mean_field", marks=pytest.mark.slow), "amortized"]
)
@pytest.mark.parametrize("estimator", KINDS)
def test_fused_steps_are_those_of_svi(estimator, guide_name):
    """Of two seeds together: parameters, moments, losses, and what the estimator keeps."""
    problem, guide = pair(guide_name)
    settings = {"steps": 5, "batch_size": 4, "estimator": estimator}
    for run, theirs in zip(
        train(started(problem, guide, (3, 4), **settings), problem),
        started(problem, guide, (3, 4), **settings),
        strict=True,
    ):
        assert (run.engine["engine"], run.engine["seeds_together"]) == ("compiled", 2)
        assert ("estimator" in run.modules) == (estimator in OWN)
        before = parameters(theirs)
        assert_close(run, train_eagerly(theirs, problem))
        assert all(not torch.equal(v, parameters(run)[n]) for n, v in before.items() if v.dim())
        for name, value in theirs.modules.named_buffers():
            torch.testing.assert_close(run.modules.get_buffer(name), value)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("estimator", ["nvil", "relax"])
def test_many_seeds_together_end_as_each_alone(estimator):
    problem, guide = pair()
    settings = {"steps": 12, "batch_size": 4, "estimator": estimator}
    _, _, run = train(started(problem, guide, (3, 4, 5), **settings), problem)
    [alone] = train(started(problem, guide, [5], **settings), problem)
    assert (run.engine["seeds_together"], alone.engine["seeds_together"]) == (3, 1)
    assert_close(run, alone, 1e-4, 1e-5)
    for name, value in alone.modules.named_buffers():
        torch.testing.assert_close(run.modules.get_buffer(name), value)


@pytest.mark.parametrize(
    ("estimator", "engine"),
    [
        ("nvil", "eager"),
        ("relax", "eager"),
        ("running_mean", "eager"),
        ("nvil", "recorded"),
        pytest.param("relax", "recorded", marks=pytest.mark.slow),
        pytest.param("running_mean", "recorded", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_ends_with_identical_bits(estimator, engine, tmp_path):
    problem, guide = pair()
    settings = {"steps": 23, "batch_size": 4, "checkpoint_seconds": 1e-9}
    settings |= {"estimator": estimator, "engine": engine, "learning_rate": 1e-3}
    config = resolve(FitConfig(**settings), problem)
    whole = fit_seeds(problem, guide, config, [3, 4], CPU)

    def interrupt(steps):
        if steps >= (30 if engine == "eager" else 10):  # an eager seed comes after the other
            raise Interrupted

    with pytest.raises(Interrupted):
        fit_seeds(problem, guide, config, [3, 4], CPU, tmp_path, report=interrupt)
    tensors, facts = checkpoint.read(tmp_path / "seed-4.safetensors")
    assert 0 < facts["step"] < 23
    assert any(name.startswith("module.estimator.") for name in tensors)
    torch.rand(3)
    resumed = fit_seeds(problem, guide, config, [3, 4], CPU, tmp_path, resume=True)
    for run, other in zip(whole, resumed, strict=True):
        assert run.losses == other.losses
        for name, value in run.modules.state_dict().items():
            assert torch.equal(value, other.modules.state_dict()[name]), name


def test_runs_of_other_estimators_have_no_module_more():
    problem, guide = pair()
    for estimator in ("score", "enumeration", *sorted(set(KINDS) - set(OWN))):
        [run] = started(problem, guide, estimator=estimator)
        assert list(run.modules) == ["model", "guide"]


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_a_seed_that_stops_keeps_its_mean(engine):
    """Of two seeds one has a rate at which its loss soon is not finite."""
    problem, guide = pair()
    settings = {"steps": 6, "batch_size": 4, "estimator": "running_mean", "engine": engine}
    runs = started(problem, guide, (3, 4), **settings)
    with torch.no_grad():
        runs[1].modules["model"].decoder[0].bias.fill_(torch.nan)
    train(runs, problem)
    assert [run.error is None for run in runs] == [True, False]
    assert runs[1].modules["estimator"].weight == 0
    assert runs[0].modules["estimator"].weight > 0


@pytest.mark.usefixtures("uncompiled", "double")
@pytest.mark.parametrize(
    ("estimator", "engine"), [("nvil", "eager"), ("relax", "eager"), ("nvil", "compiled")]
)
def test_clipping_leaves_the_estimators_own_gradient_out(estimator, engine):
    """By sgd, a step of model and guide is as long as the norm; the estimator's is not clipped."""
    problem, guide = pair()
    settings = {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 1e-3, "batch_size": None}
    settings |= {"steps": 1, "estimator": estimator, "engine": engine}
    [run] = started(problem, guide, **settings)
    before = {n: p.detach().clone() for n, p in run.modules.named_parameters()}
    train([run], problem)
    moves = {n: (p - before[n]).norm() for n, p in run.modules.named_parameters()}
    ours = [move for name, move in moves.items() if not name.startswith("estimator.")]
    assert torch.stack(ours).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert max(move for name, move in moves.items() if name.startswith("estimator.")) > 2e-3


@pytest.mark.parametrize("engine", ["eager", pytest.param("recorded", marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", KINDS)
def test_every_estimator_trains(estimator, engine):
    """The exact evidence of sixty digits, ten switches, rises most of the way that score goes."""
    data = zoo.load("bernoulli_lvm").data
    problem = zoo.load("bernoulli_lvm", data=(data.train[:60], data.test[:9]), latent_dim=10)
    guide = guides.build("amortized", problem, hidden=())
    options = {"steps": 100, "batch_size": 20, "learning_rate": 0.03, "engine": engine}
    fit = experiments.fit(problem, guide, estimator=estimator, **options)
    start = Run.start(problem, guide, fit.config, 0, CPU).modules["model"]
    before = problem.having(model=start).log_evidence(problem.data.train).mean()
    after = fit.log_evidence(problem.data.train).mean(1)
    assert (after - before > 10).all()
    assert (fit.elbo_per_datum <= after).all()


# What is refused.


def indexing():
    """A problem whose model looks a switch up, so that no gradient comes back from it."""
    table = torch.tensor([-1.0, 1.0])

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5])).to_event(1))
            pyro.sample("x", dist.Normal(table[z.long()], 1.0).to_event(1), obs=rows)

    return zoo.Problem(model, zoo.data.as_dataset(torch.randn(5, 1)))


REFUSED = [
    ("vae", {}, [*{*KINDS} - {"rws"}], {}, "is for discrete latents, vae has none: use pathwise"),
    ("bernoulli_mixture", {}, discrete.SWITCHES, {}, "is for Bernoulli latents, and z has other"),
    ("deep_sigmoid_belief_net", {}, discrete.ALONE, {}, "takes one latent.* has z2, z1"),
    ("bernoulli_lvm", {}, ["vimco", "rws"], {"num_particles": 1}, "at least 2"),
    ("bernoulli_lvm", {}, ["disarm"], {"num_particles": 3}, "pairs: num_particles must be even"),
]


@pytest.mark.parametrize(("name", "options", "estimators", "settings", "words"), REFUSED)
def test_unsuited_problems_are_refused(name, options, estimators, settings, words):
    problem = zoo.load(name, **options)
    for estimator in estimators:
        with pytest.raises(zoo.ZooError, match=words) as caught:
            resolve(FitConfig(estimator=estimator, **settings), problem)
        assert "\n" not in str(caught.value)
        assert estimator in str(caught.value)


def test_models_that_take_no_relaxed_switches_are_refused():
    problem = indexing()
    for estimator in ("gumbel_softmax", "relax"):
        with pytest.raises(zoo.ZooError, match="no gradient comes back from what follows z"):
            resolve(FitConfig(estimator=estimator), problem)
    assert resolve(FitConfig(estimator="disarm"), problem).num_particles == 2


def test_rows_that_share_a_latent_are_refused():
    def model(x=None, index=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5])).to_event(1))
            pyro.sample("x", dist.Normal(z + mean, 1.0).to_event(1), obs=rows)

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(5, 1)))
    for estimator in KINDS:
        with pytest.raises(zoo.ZooError, match="the rows of own_problem share a latent: use score"):
            resolve(FitConfig(estimator=estimator), problem)


@pytest.mark.parametrize("estimator", discrete.SWITCHES)
def test_guides_whose_switches_hang_together_are_refused(estimator, tmp_path):
    problem, _ = pair()
    oracle = guides.build("oracle", problem)
    with pytest.raises(zoo.ZooError, match=r"draws 'z' from a VectorPosterior .* independent"):
        experiments.fit(problem, oracle, estimator=estimator, steps=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(zoo.ZooError, match="temperature"):
        experiments.fit(problem, oracle, estimator=estimator, temperature=0.0)


def test_drawn_numbers_of_draws():
    problem, _ = pair()
    found = {name: resolve(FitConfig(estimator=name), problem).num_particles for name in KINDS}
    assert found == {
        "disarm": 2, "gumbel_softmax": 1, "nvil": 1, "relax": 1, "running_mean": 1, "rws": 8,
        "vimco": 8,
    }  # fmt: skip

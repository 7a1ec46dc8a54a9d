"""Objectives: bounds, their gradients by hand, subsampling, engines, and what is refused."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import RenyiELBO
from registered import CONTINUOUS, SMALL, first_rows
from scipy import stats
from steps import assert_close, started, train, train_eagerly

import experiments
import guides
import zoo
from experiments.benchmarks import objectives as benchmark
from experiments.measure.evidence import iwae
from experiments.report.captions import training_words
from experiments.svi.config import FitConfig, validated
from experiments.svi.estimators import elbo, resolve
from experiments.svi.fit import fit_seeds
from experiments.svi.interrupt import Interrupted
from experiments.svi.kl import weight_at
from experiments.svi.loop import isolated
from experiments.svi.surrogate import mean_losses
from zoo.problem import sample_sites

CPU = torch.device("cpu")
LEVEL = 1e-3
SETTINGS = {
    "iwae": {"objective": "iwae", "num_particles": 4},
    "dreg": {"objective": "dreg", "num_particles": 4},
    "renyi": {"objective": "renyi", "alpha": 0.3, "num_particles": 4},
    "stl": {"objective": "stl", "num_particles": 4},
    "stl alone": {"objective": "stl"},
    "beta": {"beta": 2.5, "num_particles": 4},
    "beta alone": {"beta": 0.3},
}


def small_rows(name, count):
    """A few rows of a few columns, so that no draw outweighs all others."""
    if name in ("eight_schools", "normal_hierarchical", "bernoulli_mixture"):
        return first_rows(zoo.load(name).data, count).map(torch.Tensor.double)
    rows = torch.randn(count, 4).double()
    return zoo.data.DataSet("small", *(2 * [rows if name == "gaussian_lvm" else (rows > 0) * 1.0]))


def problem_of(name="gaussian_lvm", count=12, **options):
    """A small problem in float64, its parameters moved away from their start."""
    problem = zoo.load(name, data=small_rows(name, count), **options)
    moved(problem.model)
    return problem


def moved(module, scale=0.3):
    """A module in float64, with noise on every parameter."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def pair(name="gaussian_lvm", guide_name="amortized", **options):
    """A small problem and such a guide, both moved away from their start; options: the model's."""
    problem = problem_of(name, **options)
    few = {"hidden": [3]} if guide_name in ("amortized", "top_down") else {}
    return problem, moved(guides.build(guide_name, problem, **few))


def hierarchy(guide_name="top_down"):
    return pair("hierarchical_vae", guide_name, latent_dim=[2, 1], hidden=[3])


def terms(problem, guide, index=None, seed=0, step=0, **settings):
    """(loss, surrogate) of a step whose noise is drawn by `seed`."""
    bound = elbo(resolve(FitConfig(batch_size=None, **settings), problem), problem)
    bound.step = step
    with isolated():
        torch.manual_seed(seed)
        return bound.terms(problem.model, guide, problem.data.train, index)


def gradients(surrogate, *modules):
    """The gradients of all parameters as one vector, zero where one takes no part."""
    parameters = list({id(p): p for m in modules for p in m.parameters()}.values())
    found = torch.autograd.grad(surrogate, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def gradient(problem, guide, index=None, **settings):
    return gradients(terms(problem, guide, index, **settings)[1], problem.model, guide)


def same(one, two):
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def no_larger_than_noise(differences, level=LEVEL):
    """Whether the mean over rows (m, p) is 0 in every column, by t tests of that level together."""
    m, p = differences.shape
    se = differences.std(0) / math.sqrt(m)
    limit = stats.t.ppf(1 - level / (2 * p), m - 1)
    return bool((differences.mean(0).abs() <= limit * se + 1e-9).all())


def draws_of(guide, x, index, num_particles, seed=0):
    """The z that a guide draws at that seed: (num_particles, b, k)."""
    with isolated(), torch.no_grad():
        torch.manual_seed(seed)
        if num_particles == 1:
            return poutine.trace(guide).get_trace(x, index).nodes["z"]["value"][None]
        with pyro.plate("particles", num_particles, dim=-2):
            return poutine.trace(guide).get_trace(x, index).nodes["z"]["value"]


def by_hand(problem, guide, index, count, settings):
    """(loss, gradient) of gaussian_lvm under a diagonal normal, in plain torch on the noise."""
    model, x = problem.model, problem.data.train
    rows, scale = (x, 1.0) if index is None else (x[index], len(x) / len(index))
    loc, log_scale = guide.rows(x, index)["z"].chunk(2, -1)
    noise = (draws_of(guide, x, index, count) - loc.detach()) / log_scale.detach().exp()
    z = loc + log_scale.exp() * noise

    def log_q(z, loc, log_scale):
        squares = ((z - loc) / log_scale.exp()) ** 2
        return (-0.5 * squares - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    log_p = zoo.gaussian_lvm.log_joint(model, rows, z)
    prior = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    w = log_p - log_q(z, loc, log_scale)
    stopped = log_p - log_q(z, loc.detach(), log_scale.detach())
    loss = -scale * w.mean(0).sum()
    weights = w.detach().softmax(0)
    kind, both = settings.get("objective", "elbo"), (model, guide)
    if kind == "iwae":
        return loss, gradients(-scale * (w.logsumexp(0) - math.log(count)).sum(), *both)
    if kind == "renyi":
        order = 1 - settings["alpha"]
        return loss, gradients(-scale * (order * w).logsumexp(0).sum() / order, *both)
    if kind == "elbo":
        beta = settings["beta"]
        kl = log_q(z, loc, log_scale) - prior
        return loss, gradients(-scale * (log_p - prior - beta * kl).mean(0).sum(), *both)
    once = weights if kind == "dreg" else torch.full_like(weights, 1 / count)
    twice = weights**2 if kind == "dreg" else once
    assert count == 1 or weights.max(0).values.median() < 0.95  # else there is one draw in effect
    (slope,) = torch.autograd.grad(stopped.sum(), z, retain_graph=True)
    own = gradients(-scale * (once * stopped).sum(), model)
    path = gradients(-scale * (twice[..., None] * slope.detach() * z).sum(), guide)
    return loss, torch.cat([own, path])


@pytest.mark.parametrize("guide_name", ["amortized", "mean_field", "constant"])
@pytest.mark.parametrize("index", [None, [0, 5, 7]], ids=["all rows", "minibatch"])
@pytest.mark.parametrize("which", SETTINGS)
def test_loss_and_gradient_are_those_by_hand(which, index, guide_name, double):
    problem, guide = pair(guide_name=guide_name)
    index, settings = None if index is None else torch.tensor(index), SETTINGS[which]
    loss, surrogate = terms(problem, guide, index, **settings)
    found = gradients(surrogate, problem.model, guide)
    count = settings.get("num_particles", 1)
    loss_by_hand, expected = by_hand(problem, guide, index, count, settings)
    same(loss, loss_by_hand)
    same(found, expected)


@pytest.mark.parametrize("which", SETTINGS)
def test_the_loss_is_the_plain_one_of_the_same_draws(which, double):
    problem, guide = hierarchy()
    settings, index = SETTINGS[which], torch.tensor([1, 2, 3, 8, 9])
    plain = {"num_particles": settings.get("num_particles", 1)}
    same(terms(problem, guide, index, **settings)[0], terms(problem, guide, index, **plain)[0])


def test_the_default_is_the_elbo_as_it_was():
    config = resolve(FitConfig(), zoo.load("vae"))
    assert (config.objective, config.num_particles) == ("elbo", 1)
    assert elbo(config, zoo.load("vae")).losses is mean_losses
    for name in ("iwae", "dreg", "renyi"):
        assert resolve(FitConfig(objective=name), zoo.load("vae")).num_particles == 8
    assert resolve(FitConfig(objective="stl"), zoo.load("vae")).num_particles == 1


def quadrature(model, x, loc, log_scale, order=80):
    """E log 1/2 (w_1 + w_2) for one z of one datum by Gauss and Hermite's rule, differentiable."""
    nodes, weights = map(torch.as_tensor, np.polynomial.hermite_e.hermegauss(order))
    weights = weights / weights.sum()
    z = (loc + log_scale.exp() * nodes)[:, None]
    w = zoo.gaussian_lvm.log_joint(model, x, z) + 0.5 * nodes**2 + log_scale
    w = w + 0.5 * math.log(2 * math.pi)
    both = torch.logaddexp(w[:, None], w[None]) - math.log(2)
    return (weights[:, None] * weights * both).sum()


@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_two_draws_of_a_conjugate_normal_are_those_of_quadrature(objective, double):
    """The bound of two draws, and its gradient for model and guide, by 4,000 x 60 repetitions."""
    rows = torch.full((4000, 1), 1.3)
    problem = zoo.load("gaussian_lvm", data=zoo.data.DataSet("same", rows, rows), latent_dim=1)
    model = moved(problem.model)
    guide = moved(guides.build("constant", problem))
    expected = quadrature(model, rows[:1], *guide.sources["z"].row)
    exact = -gradients(expected, model, guide)
    settings = {"objective": objective, "num_particles": 2}
    found, bounds = [], []
    for seed in range(60):
        _, surrogate = terms(problem, guide, seed=seed, **settings)
        bounds.append(-surrogate.detach() / len(rows))
        found.append(gradients(surrogate, model, guide) / len(rows))
    assert no_larger_than_noise(torch.stack(found) - exact)
    if objective == "iwae":  # the value of the other's surrogate has no meaning
        assert no_larger_than_noise(torch.stack(bounds)[:, None] - expected.detach())


def shared_weight():
    """A problem and a guide that is computed from the model's own weight."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.7, -1.2]))

        def forward(self, x=None, index=None):
            with zoo.datum(x, index) as rows:
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z * self.weight, 0.8).to_event(1), obs=rows)

    class Guide(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.scale = model, torch.nn.Parameter(torch.tensor([0.2]))

        def forward(self, x=None, index=None):
            with zoo.datum(x, index) as rows:
                loc = 0.5 * (rows @ self.model.weight[:, None])
                pyro.sample("z", dist.Normal(loc, self.scale.exp()).to_event(1))

    model = Model()
    return zoo.Problem(model, zoo.data.as_dataset(torch.randn(12, 2))), Guide(model)


PAIRS = {
    "hierarchy": hierarchy,
    "one vector": lambda: hierarchy("full_rank"),
    "shared weight": shared_weight,
}


@pytest.mark.parametrize("others", ["iwae dreg", "elbo stl"])
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_both_gradients_of_a_bound_have_the_same_mean(make, others, double):
    """Of model and guide, for guides that a formula by hand does not cover."""
    problem, guide = make()
    plain, other = (
        torch.stack(
            [gradient(problem, guide, objective=o, num_particles=3, seed=s) for s in range(150)]
        )
        for o in others.split()
    )
    differences = plain - other
    spread = differences.std(0)
    assert (spread > 1e-6).sum() >= 3  # the two are not the same
    # Each column may be skewed: their sums, in a few directions, are not.
    directions = torch.randn(differences.shape[1], 8)
    assert no_larger_than_noise(differences / spread.clamp(min=1e-6) @ directions)


def exact_linear_encoder():
    """gaussian_lvm with one latent and a linear encoder set to its posterior."""
    problem = problem_of(latent_dim=1)
    model = problem.model
    guide = guides.build("amortized", problem, hidden=()).double()
    encoder = guide.sources["z"]
    (layer,) = (m for m in encoder.modules() if isinstance(m, torch.nn.Linear))
    variance = model.scale() ** 2
    precision = (model.weight.square().sum() / variance + 1).item()
    slope = (model.weight[:, 0] / variance / precision).detach()
    with torch.no_grad():
        layer.weight.copy_(torch.stack([encoder.spread * slope, torch.zeros_like(slope)]))
        bias = (slope @ (encoder.center - model.loc)).item()
        layer.bias.copy_(torch.tensor([bias, -0.5 * math.log(precision)]))
    return problem, guide


@pytest.mark.parametrize("objective", ["stl", "dreg"])
def test_at_the_posterior_the_guides_gradient_is_zero_in_every_draw(objective, double):
    problem, guide = exact_linear_encoder()
    for seed in range(5):
        settings = {"num_particles": 3, "seed": seed}
        by_path = gradients(terms(problem, guide, objective=objective, **settings)[1], guide)
        plain = gradients(terms(problem, guide, **settings)[1], guide)
        assert by_path.abs().max() < 1e-9 * plain.abs().max()
        assert plain.abs().max() > 1


def test_renyi_of_order_0_is_iwae_and_near_1_the_elbo(double):
    problem, guide = pair()
    index, count = torch.tensor([3, 4, 9]), {"num_particles": 5}
    zero = terms(problem, guide, index, objective="renyi", alpha=0.0, **count)
    same(torch.stack(zero), torch.stack(terms(problem, guide, index, objective="iwae", **count)))
    near = gradient(problem, guide, index, objective="renyi", alpha=1 - 1e-7, **count)
    torch.testing.assert_close(near, gradient(problem, guide, index, **count), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.4, -1.0])
def test_pyros_renyi_agrees_on_all_rows_and_is_no_bound_on_a_minibatch(alpha, double):
    problem, guide = pair()
    model, x, index = problem.model, problem.data.train, torch.arange(3)
    modules = torch.nn.ModuleList([model, guide])
    theirs = RenyiELBO(alpha, 6, max_plate_nesting=1, vectorize_particles=True)
    settings = {"objective": "renyi", "alpha": alpha, "num_particles": 6}
    with isolated():
        torch.manual_seed(0)
        loss = theirs.loss_and_grads(model, guide, x)
        found = torch.cat([p.grad.flatten() for p in modules.parameters()])
        torch.manual_seed(0)
        scaled = theirs.loss(model, guide, x, index)
    surrogate = terms(problem, guide, **settings)[1]
    same(surrogate.detach(), torch.tensor(loss))
    same(gradients(surrogate, model, guide), found)
    assert abs(terms(problem, guide, index, **settings)[1].item() - scaled) > 1


@pytest.mark.parametrize("which", [name for name in SETTINGS if "alone" not in name])
def test_minibatches_have_the_mean_of_all_rows_at_fixed_draws(which, double, monkeypatch):
    """Exactly: loss, gradient and, where it is a bound, the surrogate's value; 10 % of the data."""
    problem = problem_of(count=30)
    guide = moved(guides.build("amortized", problem, hidden=[3]))
    noise, rows = torch.randn(4, 30, 2), torch.arange(30)

    def fixed(shape, dtype, device):
        return noise[:, now[0]].expand(shape)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", fixed)

    def found(index):
        now[0] = rows if index is None else index
        loss, surrogate = terms(problem, guide, index, **SETTINGS[which])
        own = gradients(surrogate, problem.model, guide)
        return torch.cat([loss[None], surrogate.detach()[None], own])

    now = [rows]
    each = torch.stack([found(index) for index in torch.randperm(30).split(3)])
    same(each.mean(0), found(None))


def bounds(problem, guide, count, size, repeats):
    """IWAE's bound a datum by the surrogates of whole epochs: (repeats,)."""
    num_data = len(problem.data.train)
    found, settings = [], {"objective": "iwae", "num_particles": count}
    for seed in range(repeats):
        order = torch.randperm(num_data, generator=torch.Generator().manual_seed(seed))
        each = [None] if size == num_data else order.split(size)
        values = [
            -terms(problem, guide, i, seed=97 * seed + j, **settings)[1] for j, i in enumerate(each)
        ]
        found.append(torch.stack(values).mean().detach() / num_data)
    return torch.stack(found)


@pytest.mark.parametrize("share", [1, 10], ids=["all rows", "a tenth"])
@pytest.mark.parametrize("name", ["gaussian_lvm", "vae"])
def test_iwae_rises_with_its_particles_and_stays_below_the_evidence(name, share, double):
    problem = problem_of(name, 60, **({"hidden": [5]} if name == "vae" else {}))
    guide = moved(guides.build("amortized", problem, hidden=()), 0.2)
    evidence = problem.log_evidence(problem.data.train).mean()
    limit = stats.norm.ppf(1 - LEVEL)
    before, error = torch.tensor(-math.inf), torch.tensor(0.0)
    for count in (1, 8, 64):
        found = bounds(problem, guide, count, 60 // share, 9)
        mean, se = found.mean(), found.std() / math.sqrt(len(found))
        assert mean - before > limit * (se**2 + error**2).sqrt()
        assert mean - evidence < limit * se + problem.evidence_error(problem.data.train).max()
        before, error = mean, se
    assert evidence - before < 1  # so that a bound above it would be seen


@pytest.mark.parametrize("num_particles", [1, 3])
def test_annealing_weighs_by_the_step(num_particles, double):
    problem, guide = pair()
    count, annealed = {"num_particles": num_particles}, {"beta": 3.0, "annealing_steps": 8}
    for step, beta in ((0, 0.0), (2, 0.75), (8, 3.0), (100, 3.0)):
        for given in (step, torch.tensor(step)):
            found = gradient(problem, guide, step=given, **annealed, **count)
            same(found, gradient(problem, guide, beta=beta, **count))


def test_the_eager_loop_tells_the_objective_its_step(monkeypatch, double):
    seen = []

    def noted(config, step):
        seen.append(step)
        return weight_at(config, step)

    monkeypatch.setattr("experiments.svi.kl.weight_at", noted)
    problem, guide = pair()
    settings = {"engine": "eager", "steps": 6, "batch_size": 4, "annealing_steps": 4}
    train(started(problem, guide, **settings), problem)
    assert seen == list(range(6))


def traced(problem, guide, index, num_particles):
    """{site: log density with its graph}, of the model and of the guide, on a step's noise."""
    x = problem.data.train
    with isolated(), pyro.plate("particles", num_particles, dim=-2):
        torch.manual_seed(0)
        guide_trace = poutine.trace(guide).get_trace(x, index)
        model_trace = poutine.trace(poutine.replay(problem.model, guide_trace)).get_trace(x, index)
    found = []
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
        found.append({s["name"]: s["unscaled_log_prob"].mean(0) for s in sample_sites(trace)})
    return found


def test_free_bits_leave_small_kl_alone_site_by_site(double):
    problem, guide = hierarchy()
    index, count = torch.tensor([0, 2, 5, 6]), 3
    log_p, log_q = traced(problem, guide, index, count)
    kl = {name: (log_q[name] - log_p[name]).mean() for name in log_q}
    low, high = sorted(kl.values())
    assert low > 0.01
    assert high - low > 0.1
    for free in (0.5 * low.item(), ((low + high) / 2).item(), 1 + high.item()):
        pressed = sum(value.clamp(min=free) for value in kl.values())
        expected = -len(problem.data.train) * (log_p["x"].mean() - 2.0 * pressed)
        settings = {"beta": 2.0, "free_bits": free, "num_particles": count}
        expected = gradients(expected, problem.model, guide)
        same(gradient(problem, guide, index, **settings), expected)


def test_free_bits_of_one_vector_for_all_latents(double):
    problem, guide = PAIRS["one vector"]()
    log_p, log_q = traced(problem, guide, None, 3)
    kl = (sum(log_q.values()) - log_p["z1"] - log_p["z2"]).mean()
    for free in (0.5 * kl.item(), 2 * kl.item()):
        expected = -len(problem.data.train) * (log_p["x"].mean() - kl.clamp(min=free))
        expected = gradients(expected, problem.model, guide)
        same(gradient(problem, guide, free_bits=free, num_particles=3), expected)


def test_free_bits_of_a_shared_latent_count_it_altogether(double):
    """normal_hierarchical's shared latents have KLs of some nats, not of nats a datum."""
    problem, guide = pair("normal_hierarchical", "mean_field")
    log_p, log_q = traced(problem, guide, None, 4)
    local = {latent.name: latent.local for latent in problem.latents}
    kl = {n: (log_q[n] - log_p[n]).mean() for n in local}
    for free in (
        1e-6 + max(v.item() for v in kl.values()),
        *(v.item() - 1e-6 for v in kl.values()),
    ):
        size = len(problem.data.train)
        parts = [(size if local[n] else 1) * value.clamp(min=free) for n, value in kl.items()]
        expected = sum(parts) - size * log_p["x"].mean()
        same(
            gradient(problem, guide, free_bits=free, num_particles=4),
            gradients(expected, problem.model, guide),
        )


def test_beta_under_enumeration_and_by_scores(double):
    """The exact weighted bound of a mixture; the mean of its scores; both with 1/4 of the rows."""
    data = (torch.rand(12, 6) < 0.4).double()
    problem = zoo.load("bernoulli_mixture", data=data, num_components=3)
    problem.model.double()
    guide = moved(guides.build("amortized", problem, hidden=()))
    index, beta = torch.tensor([1, 4, 6]), 3.0
    rows = problem.data.train[index]
    q = guide.rows(rows)["z"].softmax(-1)
    prior = problem.model.weight_logits.log_softmax(-1)
    likelihood = zoo.bernoulli_mixture.component_log_joint(problem.model, rows) - prior
    expected = -4 * (q * (likelihood + beta * (prior - q.log()))).sum()
    expected = gradients(expected, problem.model, guide)
    loss, surrogate = terms(problem, guide, index, beta=beta)
    same(gradients(surrogate, problem.model, guide), expected)
    same(loss, terms(problem, guide, index)[0])
    scores = {"estimator": "score", "num_particles": 8, "beta": beta}
    draws = [gradient(problem, guide, index, seed=s, **scores) for s in range(200)]
    assert no_larger_than_noise(torch.stack(draws) - expected)


class Remembered(dist.Normal):
    """A normal whose draws come with their density, as a flow's do."""

    def rsample_and_log_prob(self, shape=()):
        value = self.rsample(shape)
        return value, self.log_prob(value)


def test_densities_that_are_remembered_for_a_draw_are_not_taken_for_the_cut_one(double):
    problem, plain = pair()

    def guide(x=None, index=None):
        loc, log_scale = plain.rows(x, index)["z"].chunk(2, -1)
        with zoo.datum(x, index):
            q = torch.distributions.Independent(Remembered(loc, log_scale.exp()), 1)
            q.rsample_and_log_prob = lambda shape=(): (lambda z: (z, q.log_prob(z)))(
                q.rsample(shape)
            )
            pyro.sample("z", ZukoToPyro(q))

    for objective in ("stl", "dreg"):
        (_, one), (_, two) = (
            terms(problem, g, objective=objective, num_particles=1) for g in (guide, plain)
        )
        same(*(gradients(s, problem.model, plain) for s in (one, two)))


RECORDED = {
    "iwae": ("gaussian_lvm", "amortized", SETTINGS["iwae"]),
    "renyi": ("gaussian_lvm", "mean_field", SETTINGS["renyi"]),
    "stl": ("gaussian_lvm", "mean_field", SETTINGS["stl"]),
    "stl, a shared latent": ("eight_schools", "mean_field", SETTINGS["stl alone"]),
    "dreg": ("gaussian_lvm", "mean_field", SETTINGS["dreg"]),
    "free bits": ("gaussian_lvm", "mean_field", {"annealing_steps": 4, "free_bits": 0.01}),
    "enumeration": ("bernoulli_mixture", "amortized", {"beta": 2.0, "annealing_steps": 3}),
    "score": (
        "bernoulli_mixture",
        "constant",
        {"estimator": "score", "beta": 2.0, "free_bits": 0.1},
    ),
}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("which", RECORDED)
def test_recorded_steps_are_eager_ones(which, double):
    """Of two seeds together, on the same noise and batches."""
    name, guide_name, settings = RECORDED[which]
    problem, guide = pair(name, guide_name)
    settings = {"steps": 5, "batch_size": None if problem.joint else 4} | settings
    ours = train(started(problem, guide, (3, 4), **settings), problem)
    for run, theirs in zip(ours, started(problem, guide, (3, 4), **settings), strict=True):
        assert (run.error, run.engine["seeds_together"]) == (None, 2)
        assert_close(run, train_eagerly(theirs, problem))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("guide_name", ["top_down", "full_rank"])
def test_recorded_steps_of_one_seed_over_a_hierarchy_are_eager_ones(guide_name, double):
    problem, guide = hierarchy(guide_name)
    settings = SETTINGS["dreg"] | {"steps": 4, "batch_size": None}
    [run] = train(started(problem, guide, (5,), **settings), problem)
    [theirs] = started(problem, guide, (5,), **settings)
    assert (run.error, run.engine["seeds_together"]) == (None, 1)
    assert_close(run, train_eagerly(theirs, problem))


@pytest.mark.slow
def test_compiled_steps_are_recorded_ones():
    problem = zoo.load("gaussian_lvm", data=torch.randn(8, 2), latent_dim=1)
    guide = guides.build("constant", problem)
    settings = {"steps": 6, "batch_size": None, "objective": "dreg", "num_particles": 3}
    [compiled], [recorded] = (
        train(started(problem, guide, (1,), engine=engine, **settings), problem)
        for engine in ("compiled", "recorded")
    )
    assert (compiled.engine["engine"], recorded.engine["engine"]) == ("compiled", "recorded")
    assert_close(compiled, recorded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("eager", {"annealing_steps": 20}),
        ("recorded", {"annealing_steps": 20}),
        ("eager", SETTINGS["dreg"]),
    ],
)
def test_a_resumed_run_ends_with_identical_bits(settings, engine, tmp_path):
    problem = zoo.load("gaussian_lvm", data=first_rows(zoo.load("gaussian_lvm").data, 40))
    guide = guides.build("amortized", problem)
    settings = settings | {"steps": 23, "batch_size": 20, "checkpoint_seconds": 1e-9}
    config = resolve(FitConfig(engine=engine, **settings), problem)
    [whole] = fit_seeds(problem, guide, config, [0], CPU)

    def interrupt(step):
        if step >= 7:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit_seeds(problem, guide, config, [0], CPU, tmp_path, report=interrupt)
    [resumed] = fit_seeds(problem, guide, config, [0], CPU, tmp_path, resume=True)
    assert len(resumed.losses) == 23
    assert resumed.losses == whole.losses
    for key, value in whole.modules.state_dict().items():
        assert torch.equal(value, resumed.modules.state_dict()[key]), key


def test_an_oracle_moves_the_model_alone_and_alike_under_iwae_and_dreg(double):
    problem = problem_of()
    oracle = guides.build("oracle", problem)
    found = [gradient(problem, oracle, **SETTINGS[name]) for name in ("iwae", "dreg", "stl")]
    for one in found[1:]:  # all weights are p(x), so that every draw counts alike
        same(one, found[0])
    draws = torch.stack([gradient(problem, oracle, seed=s, **SETTINGS["dreg"]) for s in range(150)])
    evidence = zoo.gaussian_lvm.log_evidence(problem.model, problem.data.train).sum()
    assert no_larger_than_noise(draws + gradients(evidence, problem.model))


EAGER = [guide for guide in CONTINUOUS if guide not in ("delta", "importance", "oracle")]


@pytest.mark.parametrize("objective", ["stl", "dreg"])
@pytest.mark.parametrize("guide_name", [*EAGER, "oracle"])
def test_every_guide_trains_by_both_paths_in_the_eager_engine(guide_name, objective, double):
    problem = problem_of()
    guide = guides.build(guide_name, problem, **SMALL.get(guide_name, {}))
    settings = SETTINGS[objective] | {"steps": 3, "batch_size": 4, "engine": "eager"}
    history = experiments.fit(problem, guide, **settings).history
    assert history.shape == (1, 3)
    assert history.isfinite().all()


@pytest.mark.parametrize("weights", [{"beta": 2.0}, {"annealing_steps": 5}, {"free_bits": 0.1}])
@pytest.mark.parametrize("base", ["amortized", "laplace"])
def test_a_pick_among_draws_is_no_guide_for_a_weighted_kl(base, weights, double):
    """Which draw is kept has no gradient, and matters as soon as log q is weighed by itself."""
    problem = problem_of()
    guide = guides.build("importance", problem, base=base, num_draws=3)
    with pytest.raises(zoo.ZooError, match="knows it at its own draws alone"):
        experiments.fit(problem, guide, steps=5, **weights)
    assert experiments.fit(problem, guide, steps=5, batch_size=4).history.isfinite().all()


REFUSED = [
    ("vae", {"objective": "renyi", "alpha": 1.0}, "alpha=1 is the ELBO"),
    ("vae", {"objective": "iwae", "alpha": 0.2}, "take objective=renyi, not iwae"),
    ("vae", {"objective": "renyi", "alpha": math.inf}, "alpha: "),
    ("vae", {"objective": "iwae", "free_bits": 1.0}, "of objective=elbo, not of iwae"),
    ("vae", {"objective": "stl", "beta": 2.0}, "of objective=elbo, not of stl"),
    ("vae", {"objective": "dreg", "annealing_steps": 3}, "of objective=elbo, not of dreg"),
    ("vae", {"objective": "vimco"}, "objective: "),
    ("vae", {"beta": -1.0}, "beta: "),
    ("vae", {"free_bits": -1.0}, "free_bits: "),
    ("vae", {"annealing_steps": -1}, "annealing_steps: "),
    ("vae", {"annealing_steps": 11}, "at most the 10 steps of the fit, got 11"),
    ("vae", {"annealing_steps": 5, "flat_window": 10}, "take flat_window=0"),
    ("vae", {"objective": "iwae", "flat_window": 10}, "not what this fit maximizes"),
    ("vae", {"beta": 2.0, "flat_window": 10}, "not what this fit maximizes"),
    ("bernoulli_lvm", {"estimator": "rws", "flat_window": 10}, "not what this fit maximizes"),
    ("bernoulli_lvm", {"estimator": "relax", "temperature": math.inf}, "temperature: "),
    ("bernoulli_lvm", {"estimator": "score", "temperature": 3.0}, "relax, not score"),
    ("bernoulli_lvm", {"estimator": "relax", "temperature": 1e-30}, "temperature: "),
    ("vae", {"objective": "iwae", "estimator": "score"}, "needs estimator=pathwise, got score"),
    ("bernoulli_mixture", {"objective": "iwae"}, "z is discrete: take objective=elbo"),
    ("gmvae", {"objective": "stl"}, "is discrete: take objective=elbo"),
    ("bernoulli_mixture", {"free_bits": 1.0}, "enumeration has none: take estimator=score"),
    ("eight_schools", {"objective": "iwae"}, "is shared by all data: take elbo or stl"),
    ("normal_hierarchical", {"objective": "dreg"}, "is shared by all data: take elbo or stl"),
    ("made", {"objective": "iwae"}, "made has no latents"),
    ("made", {"beta": 2.0}, "made has no latents"),
    ("autoencoder", {"beta": 2.0}, "z can only be a point"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "sentence"), REFUSED)
def test_settings_that_mean_nothing_are_refused_in_one_line(name, settings, sentence):
    with pytest.raises(zoo.ZooError, match=sentence) as error:
        resolve(validated(FitConfig, steps=10, **settings), zoo.load(name))
    assert "\n" not in str(error.value)


def test_guides_that_an_objective_cannot_take_are_refused(tmp_path):
    problem = zoo.load("gaussian_lvm", data=first_rows(zoo.load("gaussian_lvm").data, 20))
    network = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Dropout(0.5))

    class Pathless(dist.Normal):
        has_rsample = False

    def pathless(x=None, index=None):
        with zoo.datum(x, index) as rows:
            pyro.sample("z", Pathless(torch.zeros(len(rows), 2), 1.0).to_event(1))

    def random_beside(x=None, index=None):
        pyro.module("network", network)
        with zoo.datum(x, index) as rows:
            loc, log_scale = network(rows).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    for guide, objective, sentence in (
        (guides.build("delta", problem), "iwae", "has no log q: it is a point estimate of z"),
        (pathless, "dreg", "the guide's .* of 'z' has none: take objective=elbo"),
        (pathless, "iwae", "the guide's .* of 'z' has none: take objective=elbo"),
        (random_beside, "stl", "must draw nothing but its latents"),
    ):
        with pytest.raises(zoo.ZooError, match=sentence):
            experiments.fit(problem, guide, steps=2, objective=objective, out=tmp_path / "new")
    for name, settings, sentence in (
        ("delta", {"beta": 2.0}, "has no log q"),
        ("delta", {"estimator": "rws"}, "has no log q"),
        (
            "importance",
            {"estimator": "rws"},
            "rws takes the gradient of log q .* another estimator",
        ),
        ("importance", {"beta": 2.0}, "weigh log q by itself"),
        ("linear", {"estimator": "score"}, "each of the guide's has one: take pathwise"),
    ):
        with pytest.raises(zoo.ZooError, match=sentence):
            experiments.fit(problem, guides.build(name, problem), steps=2, **settings)
    experiments.fit(problem, pathless, steps=2, estimator="score")
    joint = pyro.infer.autoguide.AutoMultivariateNormal(problem.model)
    with pytest.raises(zoo.ZooError, match="for all data together: take elbo or stl"):
        experiments.fit(problem, joint, steps=2, batch_size=None, objective="iwae")
    experiments.fit(problem, joint, steps=2, batch_size=None, objective="stl")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("objective", ["dreg", "stl"])
def test_fits_reach_the_evidence(objective):
    """A linear encoder's family holds the posterior of one latent: the bounds become exact."""
    rows = torch.randn(200, 1) * torch.tensor([2.0, -1.0, 0.5]) + 0.3 * torch.randn(200, 3)
    problem = zoo.load("gaussian_lvm", data=rows, latent_dim=1)
    guide = guides.build("amortized", problem, hidden=())
    settings = {"steps": 300, "batch_size": 50, "learning_rate": 0.05, "engine": "eager"}
    fit = experiments.fit(problem, guide, objective=objective, **settings)
    evidence = fit.log_evidence(rows).mean()
    bound = iwae(fit.problems[0], fit.guides[0], rows, 8)
    assert evidence - bound.mean < 0.02 + 4 * bound.mean_se
    assert evidence - fit.elbo_per_datum[0] < 0.3
    zoo.gaussian_lvm.maximum_likelihood(problem.model, rows)
    assert problem.log_evidence(rows).mean() - evidence < 0.3


def record(label, **fit):
    """What a caption reads of a record."""
    fit = {"estimator": "pathwise", "num_particles": 1} | fit
    return {
        "label": label,
        "status": "ok",
        "config": {"fit": fit, "device": "cpu"},
        "cost": {"steps": 10},
        "environment": {"device": "a processor"},
    }


def test_captions_say_which_objective_trained_a_run():
    new = FitConfig().model_dump() | {"estimator": "pathwise", "num_particles": 1}
    assert training_words([record("old")]) == training_words([record("new", **new)])
    assert "Objective" not in training_words([record("old")])
    weighed = {"beta": 4.0, "annealing_steps": 2000, "free_bits": 0.5}
    others = [
        record("a", objective="dreg", num_particles=8),
        record("b", **weighed),
        record("c", objective="renyi", alpha=0.25),
    ]
    assert (
        "Objectives: the plain ELBO, but a by iwae with doubly reparametrized gradients (8 "
        "particles); b by the ELBO with a KL part times 4 and a KL part annealed over 2,000 steps "
        "and 0.5 free nats a latent; c by Renyi's bound of order 0.25 (1 particles); every ELBO in "
        "the tables is the plain one. "
    ) in training_words([record("old"), *others])


def test_the_benchmark_finds_a_known_signal_and_writes_its_tables(tmp_path, monkeypatch, double):
    """Normal gradients of p columns have signal to noise norm(mean) / sqrt(p), here k^0.5 / 2."""
    draws = [torch.randn(4000, 50) + math.sqrt(k) / 2 for k in benchmark.COUNTS]
    for statistic in (benchmark.slope, lambda given: benchmark.signals(given[0])):
        value, se = benchmark.jackknife(statistic, draws)  # the slope, and the ratio at k = 1
        assert ((value - 0.5).abs() < 4 * se).all()
        assert (se < 0.02).all()
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(benchmark, "COUNTS", (1, 2))
    monkeypatch.setattr(benchmark, "ROWS", 40)
    monkeypatch.setattr(benchmark, "TRAINED", {"steps": 3, "batch_size": 10, "engine": "eager"})
    monkeypatch.setattr(benchmark, "CASES", {"one": ("gaussian_lvm", {}, {"hidden": ()}, 1.5)})
    results = benchmark.measure(draws=40, batch=3, repeats=2)
    benchmark.write(tmp_path, results)
    assert json.loads((tmp_path / "objectives.json").read_text())["draws"] == 40
    table = (tmp_path / "objectives.md").read_text()
    assert table.count("| one | dreg | encoder |") == 2
    assert table.count("| one (T0) |") == 2
    [tail] = results["tails"]
    assert len(tail["k"]) == 3
    assert max(tail["k"]) < 0.5  # a q that is wider than the posterior has bounded weights
    encoder, decoder = (
        [row["whole"][1][0] for row in results["signal"] if row["part"] == part]
        for part in ("encoder", "decoder")
    )
    assert decoder[0] == pytest.approx(decoder[1], rel=1e-3)  # the model's gradient is the same
    assert encoder[0] != pytest.approx(encoder[1], rel=1e-3)

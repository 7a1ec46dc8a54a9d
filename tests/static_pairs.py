"""Pairs of static structure, small: every construct of Pyro that a recording has to get right.

`PAIRS` maps a name to a function that makes a `Pair` in the default dtype.
"""

from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from registered import RECORDABLE as ZOO_PAIRS
from registered import SMALL, few_rows
from torch import nn
from torch.distributions import constraints

import guides

PAIRS = {}


@dataclass
class Pair:
    """A pair with the arguments of a step and the settings of its Trace_ELBO."""

    model: object
    guide: object
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    modules: tuple = ()
    elbo: str = "trace"


def pair(make):
    PAIRS[make.__name__] = make
    return make


def regression(x, y):
    """A positive scale, a vector and a plate."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.3))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def rows():
    return torch.randn(5, 2), torch.randn(5)


def by_autoguide(name, kind, **options):
    def make():
        return Pair(regression, kind(regression, **options), rows())

    PAIRS[name] = make


by_autoguide("auto_normal", autoguide.AutoNormal)
by_autoguide("auto_diagonal", autoguide.AutoDiagonalNormal)
by_autoguide("auto_multivariate", autoguide.AutoMultivariateNormal)
by_autoguide("auto_low_rank", autoguide.AutoLowRankMultivariateNormal, rank=1)
by_autoguide("auto_flow", autoguide.AutoIAFNormal, hidden_dim=[4])
by_autoguide("auto_delta", autoguide.AutoDelta)
by_autoguide("auto_structured", autoguide.AutoStructured)


@pair
def ten_particles():
    made = PAIRS["auto_normal"]()
    made.settings = {"num_particles": 10}
    return made


@pair
def vectorized_particles():
    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(level, 1.0))
            pyro.sample("y", dist.StudentT(4.0, z, 1.0), obs=y)

    guide = autoguide.AutoNormal(model)
    settings = {"num_particles": 10, "vectorize_particles": True}
    return Pair(model, guide, (torch.randn(4),), settings=settings)


def counts(y, level=None):
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Poisson(2.0))
        on = pyro.sample("on", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(z * on, 1.0), obs=y)


def counts_guide(y, level=None):
    rate = pyro.param("rate", lambda: 1 + torch.rand(len(y)), constraint=constraints.positive)
    p = pyro.param("p", torch.full((len(y),), 0.3), constraint=constraints.unit_interval)
    with pyro.plate("row", len(y)):
        pyro.sample("z", dist.Poisson(rate))
        pyro.sample("on", dist.Bernoulli(p))


@pair
def score_function():
    return Pair(counts, counts_guide, (torch.randn(4),))


@pair
def score_function_of_particles():
    settings = {"num_particles": 10, "vectorize_particles": True, "max_plate_nesting": 1}
    return Pair(counts, counts_guide, (torch.randn(4),), settings=settings)


@pair
def both_kinds_of_gradients():
    def model(y):
        p = torch.tensor([[0.2, 0.5, 0.3]])
        kind = pyro.sample("kind", dist.Categorical(p).to_event(1))
        centers = pyro.sample("centers", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(centers[kind], 1.0), obs=y)

    def guide(y):
        logits = pyro.param("logits", torch.zeros(1, 3))
        loc = pyro.param("loc", lambda: torch.randn(3))
        pyro.sample("kind", dist.Categorical(logits=logits).to_event(1))
        pyro.sample("centers", dist.Normal(loc, 0.5).to_event(1))

    return Pair(model, guide, (torch.randn(4),), settings={"num_particles": 3})


@pair
def delta_sites():
    def guide(x, y):
        weight = pyro.param("point", torch.ones(2))
        pyro.sample("weight", dist.Delta(weight, event_dim=1))
        pyro.sample("noise", dist.LogNormal(pyro.param("location", torch.zeros(())), 0.2))

    return Pair(regression, guide, rows())


@pair
def masks_and_scales():
    def model(y, present):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)), poutine.mask(mask=present), poutine.scale(scale=2.5):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        with pyro.plate("other", len(y)):
            pyro.sample("w", dist.Normal(z, 2.0), obs=y, obs_mask=present)

    guide = autoguide.AutoNormal(model)
    present = torch.tensor([True, False, True, True])
    return Pair(model, guide, (torch.randn(4), present))


@pair
def annealed():
    made = PAIRS["auto_normal"]()
    made.model = poutine.scale(made.model, scale=0.1)
    made.guide = poutine.scale(made.guide, scale=0.1)
    return made


@pair
def nested_plates():
    def model(y):
        columns = pyro.plate("column", y.shape[1], dim=-1)
        with columns:
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with columns, pyro.plate("row", y.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(level, 1.0))
            pyro.sample("y", dist.Laplace(z, 1.0), obs=y)

    return Pair(model, autoguide.AutoNormal(model), (torch.randn(3, 2),))


@pair
def subsampled():
    def model(y):
        with pyro.plate("row", len(y), subsample_size=3) as index:
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(level, 0.5), obs=y[index])

    def guide(y):
        loc = pyro.param("loc", torch.zeros(len(y)))
        with pyro.plate("row", len(y), subsample_size=3) as index:
            pyro.sample("level", dist.Normal(loc[index], 0.5))

    return Pair(model, guide, (torch.randn(8),))


@pair
def subsampled_by_autoguide():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=3) as index:
            level = pyro.sample("level", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(level, 0.5), obs=y[index])

    return Pair(model, autoguide.AutoNormal(model), (torch.randn(8),))


@pair
def structured_arguments():
    def model(data, *, index, power):
        z = pyro.sample("z", dist.Normal(data["prior"][0], 1.0))
        with pyro.plate("row", 8, subsample=index):
            pyro.sample("y", dist.Normal(z**power, 1.0), obs=data["y"][index])

    def guide(data, *, index, power):
        loc = pyro.param("loc", torch.ones(()))
        pyro.sample("z", dist.Normal(loc, 0.3))

    data = {"y": torch.randn(8), "prior": [torch.zeros(())]}
    return Pair(model, guide, (data,), {"index": torch.tensor([1, 6]), "power": 2})


@pair
def networks():
    encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 4))
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3))
    decoder[0].bias.requires_grad_(False)
    decoder.train()

    def model(x):
        net = pyro.module("decoder", decoder.eval())
        decoder.train()
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    def guide(x):
        net = pyro.module("encoder", encoder)
        with pyro.plate("row", len(x)):
            loc, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x = (torch.rand(6, 4) < 0.5).to(torch.get_default_dtype())
    return Pair(model, guide, (x,), modules=(encoder, decoder))


class Bayesian(PyroModule):
    """A layer with random weights, a constrained parameter, a plain layer and a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 1)
        self.layer.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
        self.noise = PyroParam(torch.ones(()), constraint=constraints.positive)
        self.before = nn.Linear(2, 2)
        self.register_buffer("center", torch.randn(2))

    def forward(self, x, y):
        mean = self.layer(self.before(x - self.center)).squeeze(-1)
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


@pair
def pyro_module():
    model = Bayesian()
    return Pair(model, autoguide.AutoNormal(model), rows(), modules=(model,))


@pair
def implicit_gradients():
    def model(y):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        chance = pyro.sample("chance", dist.Beta(2.0, 3.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(rate * shares[0] + chance, 1.0), obs=y)

    def guide(y):
        positive = constraints.positive
        pyro.sample("shares", dist.Dirichlet(pyro.param("a", torch.ones(3), constraint=positive)))
        b = pyro.param("b", torch.tensor([2.0, 3.0, 1.5, 2.5]), constraint=positive)
        pyro.sample("rate", dist.Gamma(b[0], b[1]))
        pyro.sample("chance", dist.Beta(b[2], b[3]))

    return Pair(model, guide, (torch.randn(4),))


@pair
def covariances():
    def model(y):
        root = pyro.sample("root", dist.LKJCholesky(3, torch.tensor(2.0)))
        with pyro.plate("row", len(y)):
            normal = dist.MultivariateNormal(torch.zeros(3), scale_tril=root)
            pyro.sample("y", normal, obs=y)

    return Pair(model, autoguide.AutoMultivariateNormal(model), (torch.randn(4, 3),))


@pair
def unused_and_frozen_parameters():
    frozen = nn.Linear(1, 1).requires_grad_(False).eval()
    other = torch.ones((), requires_grad=True)  # unknown to Pyro, reached by backward()

    def model(y):
        pyro.param("unused", torch.ones(2))
        pyro.module("frozen", frozen)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = pyro.param("shift", torch.zeros(())).detach()
        mean = frozen(y[:, None])[:, 0] * z + shift + other
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    return Pair(model, guide, (torch.randn(4),), modules=(frozen, _holder(other)))


def _holder(tensor):
    holder = nn.Module()
    holder.other = nn.Parameter(tensor)
    holder.register_buffer("gradient_of", tensor, persistent=False)
    return holder


def of_the_zoo(name, guide_name):
    def make():
        problem = few_rows(name, 12)
        guide = guides.build(guide_name, problem, **SMALL.get(guide_name, {}))
        dtype = torch.get_default_dtype()
        for module in (problem.model, guide):
            module.to(dtype)
        settings = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
        x = problem.data.train.to(dtype)
        index = None if problem.joint else torch.tensor([3, 1, 7])
        return Pair(problem.model, guide, (x, index), {}, settings, (problem.model, guide))

    PAIRS[f"{name}-{guide_name}"] = make


for both in ZOO_PAIRS:
    of_the_zoo(*both)


def enumerated(make):
    def enumerate_all():
        made = make()
        made.elbo = "enumeration"
        made.settings = {"max_plate_nesting": 1} | made.settings
        return made

    PAIRS[make.__name__] = enumerate_all
    return enumerate_all


@enumerated
def enumerated_guide():
    """One of the guide's probabilities is zero, of which Pyro leaves out the value."""

    @pyro.infer.config_enumerate
    def guide(y):
        logits = pyro.param("kinds", torch.eye(4, 3))
        allowed = torch.tensor([0.0, 0.0, -torch.inf])
        with pyro.plate("row", len(y)):
            pyro.sample("kind", dist.Categorical(logits=logits + allowed))

    def model(y):
        locs = pyro.param("locs", lambda: torch.randn(3))
        with pyro.plate("row", len(y)):
            kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
            pyro.sample("y", dist.Normal(locs[kind], 1.0), obs=y)

    return Pair(model, guide, (torch.randn(4),))


@enumerated
def enumerated_model():
    @pyro.infer.config_enumerate
    def model(y):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("row", len(y), subsample_size=3) as index:
            state = pyro.sample("state", dist.Categorical(weights))
            move = torch.tensor([[1.0, 0.0], [0.3, 0.7]])
            state = pyro.sample("next", dist.Categorical(move[state]))
            pyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=y[index])

    guide = autoguide.AutoNormal(poutine.block(model, expose=["weights"]))
    return Pair(model, guide, (torch.randn(6),), settings={"num_particles": 2})

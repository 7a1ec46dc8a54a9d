"""Models and guides with one fault each, which the check named beside it must refuse."""

import math
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import biject_to, constraints

import guides
import zoo
from guides.guide import Guide
from guides.sources import Encoder, Table

MODELS, PAIRS = {}, {}
ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Fault:
    """The check that must refuse what `build` makes, and words of its sentence."""

    build: object
    check: str
    words: str


def broken(faults, check, words):
    """Decorator: a function that builds the entry with this fault."""

    def put(build):
        faults[build.__name__] = Fault(build, check, words)
        return build

    return put


class Linear(PyroModule):
    """A right model, whose parts the faults replace; x (n, 3), z (n, 2)."""

    def __init__(self):
        super().__init__(zoo.unique("linear"))
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.3], [0.5, -1.0], [0.2, 0.8]]))
        self.loc = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))
        self.log_scale = nn.Parameter(torch.tensor(-0.5))

    def datum(self, x, index):
        return zoo.datum(x, index)

    def mean(self, z):
        return z @ self.weight.T + self.loc

    def likelihood(self, z):
        return dist.Normal(self.mean(z), self.log_scale.exp()).to_event(1)

    def prior(self):
        return dist.Normal(self.loc.new_zeros(2), 1).to_event(1)

    def forward(self, x=None, index=None):
        prior = self.prior()
        with self.datum(x, index) as rows:
            return self.observe(rows, pyro.sample("z", prior))

    def observe(self, rows, z):
        return pyro.sample("x", self.likelihood(z), obs=rows)


def linear_log_joint(model, x, z):
    """The density of `Linear`, a second time."""
    sigma = model.log_scale.exp()
    residual = (x - z @ model.weight.T - model.loc) / sigma
    constants = 2.5 * math.log(2 * math.pi) + 3 * model.log_scale
    return -0.5 * (z**2).sum(-1) - 0.5 * (residual**2).sum(-1) - constants


def marginal(model, x):
    """The exact p(x), a normal."""
    noise = (2 * model.log_scale).exp() * torch.eye(3).to(x)
    return dist.MultivariateNormal(model.loc, model.weight @ model.weight.T + noise)


def linear_evidence(model, x):
    """Exact log p(x), (n,)."""
    return marginal(model, x).log_prob(x)


def linear_posterior(model, x):
    """Exact p(z given x)."""
    gain = model.weight.T @ marginal(model, x).precision_matrix
    covariance = torch.eye(2).to(x) - gain @ model.weight
    return dist.MultivariateNormal((x - model.loc) @ gain.T, 0.5 * (covariance + covariance.T))


TRUTH = zoo.Truth("T0", "marginal normal", linear_evidence, linear_posterior)


def problem_of(model=Linear, log_joint=linear_log_joint, truth=zoo.problem.NO_TRUTH, rows=ROWS):
    """A problem on copies of the rows."""
    return zoo.Problem(model(), zoo.data.as_dataset(rows.clone()), log_joint, truth)


def right_problem():
    """The model without a fault, and with its truth."""
    return problem_of(truth=TRUTH)


def program(function, rows=ROWS):
    """A problem of a plain function without a second density."""
    return zoo.Problem(function, zoo.data.as_dataset(rows.clone()))


@broken(MODELS, "density", "differs from the program by .* a variance passed as a scale")
def variance_as_scale():
    class Broken(Linear):
        def likelihood(self, z):
            return dist.Normal(self.mean(z), (2 * self.log_scale).exp()).to_event(1)

    return problem_of(Broken)


@broken(MODELS, "density", "another prior")
def another_prior():
    class Broken(Linear):
        def prior(self):
            return dist.Normal(self.loc.new_zeros(2), 1.1).to_event(1)

    return problem_of(Broken)


@broken(MODELS, "density", r"log_joint returns shape \(\), expected \(16,\)")
def log_joint_sums_over_rows():
    return problem_of(log_joint=lambda *args, **kw: linear_log_joint(*args, **kw).sum())


@broken(MODELS, "parameters", "'loc' of the model gets no gradient")
def detached_mean():
    class Broken(Linear):
        def mean(self, z):
            return z @ self.weight.T + self.loc.detach()

    return problem_of(Broken)


@broken(MODELS, "parameters", "'spare' of the model gets no gradient: it is unused")
def unused_parameter():
    class Broken(Linear):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.zeros(2))

    return problem_of(Broken)


@broken(MODELS, "parameters", r"parameter of shape \(3,\) that is not in its module")
def parameter_outside_the_module():
    class Broken(Linear):
        def mean(self, z):
            return super().mean(z) + pyro.param("shift", lambda: torch.ones(3))

    return problem_of(Broken)


class Late(dist.Normal):
    """A normal that asks for its mean when a density is computed, which is after the run."""

    def log_prob(self, value):
        return dist.Normal(self.late_mean(), self.scale).log_prob(value)

    def expand(self, batch_shape, _instance=None):
        return self


@broken(MODELS, "parameters", "'shift' of the model is read where Pyro does not see it")
def parameter_read_after_the_run():
    class Broken(Linear):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

        def likelihood(self, z):
            mean = self.mean(z)
            found = Late(mean, self.log_scale.exp())
            found.late_mean = lambda: mean + self.shift
            return found.to_event(1)

    return problem_of(Broken)


@broken(MODELS, "parameters", "gradient of parameter 'log_scale' of the model is not finite")
def infinite_gradient_of_a_parameter():
    class Broken(Linear):
        def mean(self, z):
            return super().mean(z) + (self.log_scale - self.log_scale.detach()).abs().sqrt()

    return problem_of(Broken)


@broken(MODELS, "gradients", "a latent is detached")
def detached_latent():
    class Broken(Linear):
        def mean(self, z):
            return super().mean(z.detach())

    return problem_of(Broken)


@broken(MODELS, "gradients", "not finite at a point .*behind torch.where")
def root_of_a_negative_number():
    class Broken(Linear):
        def mean(self, z):
            return super().mean(z) + torch.where(z > 0, z.sqrt(), 0.0).sum(-1, keepdim=True)

    return problem_of(Broken)


@broken(MODELS, "minibatch", "open the plate with zoo.datum")
def unscaled_minibatch():
    class Broken(Linear):
        def datum(self, x, index):
            return zoo.datum(x if index is None else x[index])

    return problem_of(Broken)


@broken(MODELS, "minibatch", "scale nothing by hand")
def minibatch_scaled_twice():
    class Broken(Linear):
        def forward(self, x=None, index=None):
            factor = 1.0 if index is None else len(x) / len(index)
            with poutine.scale(scale=factor):
                return super().forward(x, index)

    return problem_of(Broken)


class WithoutConstant(dist.Normal):
    """A normal whose log density lacks the logarithm of its scale."""

    def log_prob(self, value):
        return super().log_prob(value) + self.scale.log()

    def expand(self, batch_shape, _instance=None):
        return WithoutConstant(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


@broken(MODELS, "normalization", "mean of its score is .* standard errors from zero")
def unnormalized_likelihood():
    class Broken(Linear):
        def likelihood(self, z):
            return WithoutConstant(self.mean(z), self.log_scale.exp().expand(3)).to_event(1)

    def log_joint(model, x, z):
        return linear_log_joint(model, x, z) + 3 * model.log_scale

    return problem_of(Broken, log_joint)


@broken(MODELS, "normalization", "use no pyro.factor")
def factor():
    class Broken(Linear):
        def observe(self, rows, z):
            pyro.factor("reward", -0.1 * self.mean(z).square().sum(-1))
            return super().observe(rows, z)

    return problem_of(Broken, None)


@broken(MODELS, "sites", r"log_joint does not take the model's latents \(z\)")
def misspelt_latent_of_log_joint():
    return problem_of(log_joint=lambda model, x, zz: linear_log_joint(model, x, zz))


@broken(MODELS, "sites", "without data the model draws z, w, x; with data it has the latents z")
def other_latents_without_data():
    class Broken(Linear):
        def observe(self, rows, z):
            if rows is None:
                pyro.sample("w", dist.Normal(torch.zeros(z.shape[:-1]), 1))
            return super().observe(rows, z)

    return problem_of(Broken)


@broken(
    MODELS, "shapes", r"'x' has log densities of shape \(16, 16\) for 16 rows, expected \(16,\)"
)
def observed_with_another_event_shape():
    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows)

    return program(model, ROWS[:, :1])


@broken(MODELS, "shapes", "does not run in a plate of draws: index from the right")
def indexed_from_the_left():
    class Broken(Linear):
        def mean(self, z):
            return z[:, 0, None] * self.weight[:, 0] + z[:, 1, None] * self.weight[:, 1] + self.loc

    return problem_of(Broken)


class Misdeclared(dist.Normal):
    """A normal that declares the support of another distribution."""

    support = constraints.positive


@broken(MODELS, "supports", "draw of latent 'z' is outside its support")
def draws_outside_the_declared_support():
    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", Misdeclared(torch.zeros(2), 1.0).to_event(1))
            mean = z[..., :1].expand(*z.shape[:-1], 3)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    return program(model)


@broken(MODELS, "data", "does not observe them; give the likelihood obs=rows")
def data_never_observed():
    class Broken(Linear):
        def observe(self, rows, z):
            return super().observe(None if rows is None else torch.zeros_like(rows), z)

    return problem_of(Broken, None)


@broken(MODELS, "inputs", "changes its input in place")
def input_changed_in_place():
    class Broken(Linear):
        def forward(self, x=None, index=None):
            if x is not None:
                x -= self.loc.detach()
            return super().forward(x, index)

    return problem_of(Broken, None)


@broken(MODELS, "runs without data", "does not run without data .*take x=None")
def needs_data():
    class Broken(Linear):
        def observe(self, rows, z):
            return super().observe(rows - rows.new_zeros(()), z)

    return problem_of(Broken)


@broken(MODELS, "runs without data", r"'x' has shape \(1, 2\) without data and \(1, 3\) with")
def other_shape_without_data():
    class Broken(Linear):
        def observe(self, rows, z):
            if rows is None:
                return pyro.sample("x", self.prior())
            return super().observe(rows, z)

    return problem_of(Broken)


@broken(MODELS, "rows", "rows must not see each other")
def rows_coupled_by_batch_statistics():
    class Broken(Linear):
        def mean(self, z):
            return super().mean(z - z.mean(-2, keepdim=True))

    return problem_of(Broken, None)


@broken(MODELS, "truth", "off log p")
def evidence_without_a_constant():
    truth = zoo.Truth("T0", "", lambda model, x: linear_evidence(model, x) - 0.1, linear_posterior)
    return problem_of(truth=truth)


@broken(MODELS, "truth", "the evidence or the posterior is wrong")
def posterior_too_wide():
    def posterior(model, x):
        right = linear_posterior(model, x)
        return dist.MultivariateNormal(right.loc, 1.1 * right.covariance_matrix)

    return problem_of(truth=zoo.Truth("T0", "", linear_evidence, posterior))


@broken(MODELS, "save load", "in parameters and buffers of the module")
def state_outside_the_module():
    class Broken(Linear):
        def __init__(self):
            super().__init__()
            self.shift = torch.ones(3)

        def mean(self, z):
            return super().mean(z) + self.shift

    return problem_of(Broken)


@broken(MODELS, "reruns", "not from numpy or random")
def draws_from_numpy():
    class Broken(Linear):
        def mean(self, z):
            return super().mean(z) + np.random.standard_normal()

    return problem_of(Broken)


@broken(MODELS, "docstring", "lacks Story:, Data:, Truth:")
def docstring_without_sections():
    return problem_of().having(name="vae")


@broken(MODELS, "docstring", "has no docstring")
def file_without_docstring():
    names = {"__file__": "mine.py", "zoo": zoo, "pyro": pyro, "dist": dist, "torch": torch}
    text = """
def model(x=None, index=None):
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=rows)
"""
    exec(text, names)
    return program(names["model"])


def amortized(problem=None, source=Encoder, family=None):
    """(problem, guide): a right encoder, but for what the arguments replace."""
    problem = problem or right_problem()
    train = problem.data.train
    guide = Guide("own", problem, lambda _, q: source(train, (8,), q.num_parameters))
    if family:
        guide.families = {"z": family(problem.latents[0])}
    return problem, guide


def normal_guide(site="z", width=2, inside=True, also=(), plate="datum"):
    """A plain function: standard normal, with the faults that the arguments say."""

    def guide(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(width))
        q = dist.Normal(loc, 1.0).to_event(1)
        if not inside:
            pyro.sample(site, q)
            return
        with zoo.datum(x, index, plate):
            for name in (site, *also):
                pyro.sample(name, q)

    return right_problem(), guide


@broken(PAIRS, "sites", "misses latent 'z'; it has zz")
def misspelt_site():
    return normal_guide(site="zz")


@broken(PAIRS, "sites", "misses latent 'z'; it has none")
def missing_latent():
    return right_problem(), lambda x=None, index=None: None


@broken(PAIRS, "sites", "latent 'w', unknown to the model; the model has z")
def latent_too_many():
    return normal_guide(also=("w",))


@broken(PAIRS, "sites", "stands in plates none in the guide, datum in the model")
def no_plate():
    return normal_guide(inside=False)


@broken(PAIRS, "sites", "stands in plates row in the guide, datum in the model")
def plate_of_another_name():
    return normal_guide(plate="row")


@broken(PAIRS, "sites", r"event shape \(3,\) in the guide, \(2,\) in the model")
def another_event_shape():
    return normal_guide(width=3)


def positive_problem():
    """A problem with a positive latent."""

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Gamma(torch.full((2,), 3.0), 1.0).to_event(1))
            mean = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    return program(model)


@broken(PAIRS, "supports", "draws latent 'z' outside its support")
def normal_for_a_positive_latent():
    def guide(x=None, index=None):  # so far from zero that no draw is negative
        with zoo.datum(x, index):
            pyro.sample("z", dist.Normal(torch.full((2,), 50.0), 1.0).to_event(1))

    return positive_problem(), guide


@broken(PAIRS, "index", "the guide ignores index: .*issue 3468")
def autoguide():
    problem = right_problem()
    return problem, AutoNormal(problem.model)


@broken(PAIRS, "index", "the guide ignores index")
def table_of_all_rows():
    def guide(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(40, 2))
        with pyro.plate("datum", len(loc)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return right_problem(), guide


@broken(PAIRS, "index", "the guide ignores index")
def unscaled_guide():
    def guide(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(2))
        with pyro.plate("datum", len(x) if index is None else len(index)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return right_problem(), guide


@broken(PAIRS, "minibatch", "log q of minibatches is .* scale nothing by hand")
def guide_scaled_twice():
    class Broken(Guide):
        def forward(self, x=None, index=None):
            factor = 1.0 if index is None else len(x) / len(index)
            with poutine.scale(scale=factor):
                return super().forward(x, index)

    problem = right_problem()
    return problem, Broken("own", problem, lambda _, q: Table(40, q.initial_row))


@broken(PAIRS, "rows", "take batch statistics out")
def encoder_with_batch_statistics():
    class Broken(Encoder):
        def forward(self, rows, index):
            return super().forward(rows - rows.mean(0), index)

    return amortized(source=Broken)


@broken(PAIRS, "inputs", "changes its input in place")
def encoder_that_centers_in_place():
    class Broken(Guide):
        def forward(self, x=None, index=None):
            x -= 0.1
            return super().forward(x, index)

    problem = right_problem()
    return problem, Broken("own", problem, lambda _, q: Table(40, q.initial_row))


@broken(PAIRS, "parameters", r"'sources\.z\.network\.0\.weight' of the guide gets no gradient")
def detached_encoder():
    class Broken(Encoder):
        def forward(self, rows, index):
            inner = self.network[:-1]((rows - self.center) / self.spread)
            return self.network[-1](inner.detach())

    return amortized(source=Broken)


@broken(PAIRS, "parameters", "that is not in its module")
def guide_parameter_outside_the_module():
    class Broken(Encoder):
        def forward(self, rows, index):
            return super().forward(rows, index) + pyro.param("shift", lambda: torch.ones(4))

    return amortized(source=Broken)


@broken(PAIRS, "uses its input", "the guide's encoder ignores the data")
def encoder_that_ignores_its_input():
    class Broken(Encoder):
        def forward(self, rows, index):
            return super().forward(torch.zeros_like(rows), index)

    return amortized(source=Broken)


@broken(PAIRS, "uses its input", "the guide's encoder ignores the data")
def network_that_ignores_its_input():
    network = nn.Linear(3, 2)

    def guide(x=None, index=None):
        pyro.module("network", network)
        with zoo.datum(x, index) as rows:
            pyro.sample("z", dist.Normal(network(rows * 0), 1.0).to_event(1))

    return right_problem(), guide


@broken(PAIRS, "uses its input", "the guide's encoder ignores the data")
def own_network_that_ignores_its_input():
    class Broken(PyroModule):
        def __init__(self):
            super().__init__(zoo.unique("own"))
            self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, x=None, index=None):
            with zoo.datum(x, index) as rows:
                loc = self.network(torch.ones_like(rows))
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return right_problem(), Broken()


@broken(PAIRS, "save load", "in parameters and buffers of the module")
def guide_state_outside_the_module():
    class Broken(Encoder):
        def __init__(self, *args):
            super().__init__(*args)
            self.shift = torch.ones(4)

        def forward(self, rows, index):
            return super().forward(rows, index) + self.shift

    return amortized(source=Broken)


@broken(PAIRS, "reruns", "not from numpy or random")
def guide_that_draws_from_numpy():
    class Broken(Encoder):
        def forward(self, rows, index):
            return super().forward(rows, index) + np.random.standard_normal()

    return amortized(source=Broken)


class TwoScales(dist.Normal):
    """Draws with a scale 10 % below that of its density."""

    def rsample(self, sample_shape=()):
        draws = super().rsample(sample_shape)
        return self.loc + 0.9 * (draws - self.loc)

    def expand(self, batch_shape, _instance=None):
        return TwoScales(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


@broken(PAIRS, "score identity", "log q is not the density that it draws from")
def log_q_with_another_scale():
    class Family:
        num_parameters = 4

        def __init__(self, latent):
            pass

        def __call__(self, rows):
            loc, log_scale = rows.chunk(2, -1)
            return TwoScales(loc, log_scale.exp()).to_event(1)

    return amortized(family=Family)


@broken(PAIRS, "score identity", "write q once")
def jacobian_left_out():
    """log q of a log-normal without the term of the change of variables, by an auxiliary site."""

    def guide(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(2))
        scale = pyro.param("scale", lambda: torch.ones(2), constraints.positive)
        with zoo.datum(x, index):
            raw = dist.Normal(loc, scale).to_event(1)
            raw = pyro.sample("raw", raw, infer={"is_auxiliary": True})
            log_density = -scale.log().sum()  # already in the density of raw
            pyro.sample("z", dist.Delta(biject_to(constraints.positive)(raw), log_density, 1))

    return positive_problem(), guide


@broken(PAIRS, "bound", "nats above the exact evidence of 16 rows: the evidence is too low")
def evidence_too_low():
    truth = zoo.Truth("T0", "", lambda model, x: linear_evidence(model, x) - math.log(2 * math.pi))
    problem = problem_of(truth=truth)
    return problem, guides.build("mean_field", problem)


@broken(PAIRS, "docstring", "lacks Family:, Cannot represent:")
def guide_docstring_without_sections():
    problem, guide = amortized()
    guide.name = "broken"
    guides._registry._builds["broken"] = amortized
    return problem, guide


def drop_broken_guide():
    """Take what `guide_docstring_without_sections` registered away."""
    guides._registry._builds.pop("broken", None)

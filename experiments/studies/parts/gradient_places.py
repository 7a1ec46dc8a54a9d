"""Places near the best q where gradient_estimators takes gradients, and the estimators themselves.

A place is a model held still, rows of data, and for each row the parameters of its own q: the best
ones, and a way that leads off them.
"""

from copy import deepcopy
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import nn

import experiments
import guides
import zoo
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo
from guides.families import DiagonalNormal

EVALUATIONS = 8  # of the model, for one gradient of a datum
PLAIN, BASELINE, PATH, CUT = "score", "score, leave-one-out", "pathwise", "path derivative"
RELAXED = "gumbel_softmax"
ESTIMATORS = {
    "gaussian": {
        PLAIN: {"estimator": "pathwise"},  # which takes the score where draws have no path
        BASELINE: {"estimator": "score"},
        PATH: {"estimator": "pathwise"},
        CUT: {"estimator": "pathwise", "objective": "stl"},
    },
    "bernoulli": {
        PLAIN: {"estimator": "pathwise"},
        BASELINE: {"estimator": "score"},
        "running_mean": {"estimator": "running_mean"},
        "nvil": {"estimator": "nvil"},
        "disarm": {"estimator": "disarm"},
        "relax": {"estimator": "relax", "num_particles": EVALUATIONS // 2},
        RELAXED: {"estimator": RELAXED},
    },
}
"""Of each kind of latents, as FitConfig has them; relax evaluates the model twice a draw."""
EXACT = {"estimator": "enumeration", "num_particles": 1}


class Pathless(dist.Normal):
    """A normal whose draws have no path, so that their score is left."""

    has_rsample = False


class PathlessNormal(DiagonalNormal):
    """The family of diagonal normals, without paths."""

    def __call__(self, rows):
        normal = super().__call__(rows).base_dist
        return Pathless(normal.loc, normal.scale).to_event(1)


@dataclass
class Place:
    """Rows of data x (m, d), and parameters of q (m, p): the best ones, and what is near.

    toward: where q goes for a distance of 1; units: those in which a parameter is counted.
    """

    kind: str
    problem: object
    x: torch.Tensor
    best: torch.Tensor
    toward: torch.Tensor
    units: torch.Tensor

    def at(self, distance):
        """q's parameters at that distance: (m, p)."""
        return self.best + distance * self.toward

    def exact(self, distance):
        """The exact gradient of the ELBO, in the units: (m, p)."""
        if self.kind == "bernoulli":
            return drawn(self, EXACT, self.at(distance), 1)[0]
        return -distance * self.toward / self.units  # of a quadratic, q's sd being the best


def gaussian(latents, seed, settings, device):
    """A Place in probabilistic PCA, whose posterior is in q's family."""
    problem = zoo.load("gaussian_lvm", latent_dim=latents)
    zoo.gaussian_lvm.maximum_likelihood(problem.model, problem.data.train)
    problem.model.to(device)
    x = rows_of(problem, seed, settings.rows).to(device)
    posterior = exact_posterior(problem, x)
    sd = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    signs = torch.randn(sd.shape, generator=torch.Generator().manual_seed(seed)).sign().to(sd)
    best, toward, units = (
        torch.cat(pair, -1).to(x)
        for pair in ((posterior.loc, sd.log()), (signs * sd, 0 * sd), (sd, torch.ones_like(sd)))
    )
    return Place("gaussian", problem.frozen(), x, best, toward, units)


def exact_posterior(problem, x):
    """p(z given x) of a Gaussian model in double precision: in single it is not quite symmetric."""
    return problem.having(model=deepcopy(problem.model).double()).posterior(x.double())


def bernoulli(problem, seed, settings, device):
    """A Place in a trained model of switches."""
    problem.model.to(device)
    x = rows_of(problem, seed, settings.rows).to(device)
    best = best_switches(problem, x)
    return Place("bernoulli", problem.frozen(), x, best, -best, torch.ones_like(best))


def trained(latents, settings, device):
    """Problems of switches, one for each seed."""
    problem = zoo.load("bernoulli_lvm", latent_dim=latents)
    options = {"seeds": settings.seeds, "device": device, "estimator": "disarm"}
    guide = guides.build("amortized", problem)
    return experiments.fit(problem, guide, steps=settings.steps, **options).problems


def best_switches(problem, x, restarts=1):
    """The logits of the best independent switches that searches find for every row: (n, k)."""
    guide = guides.build("mean_field", problem)
    return experiments.fit_rows(problem, guide, x, restarts=restarts).guide.rows(x)["z"].detach()


def rows_of(problem, seed, count):
    """Held-out rows of that seed, taken in turn."""
    places = torch.arange(seed * count, (seed + 1) * count) % len(problem.data.test)
    return problem.data.test[places]


def guide_for(problem, name):
    """The guide with a row for each datum, of which an estimator takes the gradient."""
    pathless = problem.name == "gaussian_lvm" and name in (PLAIN, BASELINE)
    return guides.build("mean_field", problem, family=PathlessNormal if pathless else "auto")


def config_for(own, **options):
    return FitConfig(**{"num_particles": EVALUATIONS, "batch_size": None} | own | options)


def copies(place, parameters, count, name=None):
    """(the rows so many times, a guide with as many copies of their parameters)."""
    x, start = place.x.repeat(count, 1), {"z": parameters.repeat(count, 1)}
    guide = guide_for(place.problem, name).with_table(place.problem, len(x), start)
    return x, guide.to(x.device)


def drawn(place, own, parameters, draws, name=None, modules=None):
    """Gradients of the ELBO, in the units, a draw a copy of the rows: (draws, m, p)."""
    x, guide = copies(place, parameters, draws, name)
    bound = elbo(config_for(own), place.problem, modules or nn.ModuleDict())
    _, surrogate = bound.terms(place.problem.model, guide, x)
    (gradient,) = torch.autograd.grad(-surrogate, [guide.sources["z"].rows.weight])
    return gradient.unflatten(0, (draws, -1)) * place.units

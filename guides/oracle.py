"""Oracle: the exact posterior of every datum, where the problem knows it; the upper anchor.

Family: q(z) = p(z given x) under the model's parameters as they are.  It has no parameters, its
    gap is zero and its draws are those of the posterior, so each diagnostic must pass it.
Cannot represent: anything but the posterior; given `alter` it is a guide that is wrong on purpose,
    which diagnostics that look for such a fault must refuse.
Needs: a problem whose posterior over its one latent is exact (T0 or T1).  A posterior on a grid,
    which is refined as far as a datum needs, is computed at every step, and not recorded.
Source: Cook, Gelman & Rubin 2006, Validation of software for Bayesian models, for the habit of
    testing a check on an answer that is known to be right and on ones known to be wrong.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions.transforms import AffineTransform

import guides
import zoo
from guides.inside import detached
from guides.unsuited import Unsuited, require_suited
from zoo.errors import TruthUnavailable, require


class NoPosterior(Unsuited, TruthUnavailable):
    """The problem knows no exact posterior for an oracle to draw from."""


class Oracle(nn.Module):
    """A Pyro guide `guide(x, index=None)` that draws from the exact posterior.

    alter: maps the posterior, a distribution of batch (n,), to the one to draw from instead.
    Copied together with the model, the copy follows the copied model.
    Raises TruthUnavailable where the problem knows no exact posterior.
    """

    name = "oracle"
    tabular = False

    def __init__(self, problem, alter=None):
        super().__init__()
        if problem.truth.posterior is None:
            raise NoPosterior(
                f"oracle does not suit {problem.name}, which knows no exact posterior (truth level "
                f"{problem.truth.level}: {problem.truth.how})"
            )
        names = ", ".join(latent.name for latent in problem.latents)
        require_suited(
            len(problem.latents) == 1,
            f"oracle does not suit {problem.name}: it draws one latent, the model has {names}",
        )
        self.alter, self.latents, self.plate = alter, problem.latents, problem.plate
        self.posterior = problem.truth.posterior
        self._hidden = (problem.model,)  # in a tuple its parameters are not the guide's

    def forward(self, x=None, index=None):
        (latent,) = self.latents
        if not latent.local:
            return pyro.sample(latent.name, self.distribution(x))
        with zoo.datum(x, index, self.plate) as rows:
            return pyro.sample(latent.name, self.distribution(rows))

    @torch.no_grad()
    def distribution(self, rows):
        """q of the latent for rows (n, d), batch (n,)."""
        require(rows is not None, "an oracle needs data: guide(x)")
        # Where log q is computed from the model, later than here, the model must not be pulled.
        q = self.posterior(detached(self._hidden[0]), rows)
        return q if self.alter is None else self.alter(q)


def spread_by(factor):
    """An alteration: every standard deviation times `factor`, the mean as it is."""

    def alter(q):
        return _affine(q, q.mean * (1 - factor), torch.full_like(q.mean, factor))

    return alter


def shift_by(share):
    """An alteration: every coordinate's mean plus `share` of its standard deviation."""

    def alter(q):
        return _affine(q, share * q.variance.sqrt(), torch.ones_like(q.mean))

    return alter


def swap(first, second):
    """An alteration: two values of a discrete latent have each other's probabilities."""

    def alter(q):
        order = torch.arange(q.logits.shape[-1], device=q.logits.device)
        order[[first, second]] = order[[second, first]]
        return dist.Categorical(logits=q.logits[..., order])

    return alter


def independent(q):
    """An alteration: the mean-field normal nearest to a normal posterior in KL(q | p).

    Its means are the posterior's, its precisions the diagonal of the posterior's precision.
    Source: Bishop 2006, section 10.1.2.
    """
    precision = q.precision_matrix.diagonal(dim1=-2, dim2=-1)
    return dist.Normal(q.mean, precision.rsqrt()).to_event(1)


def _affine(q, loc, scale):
    """The distribution of loc + scale z, for z from q; one scale a coordinate."""
    event_dim = len(q.event_shape)
    return dist.TransformedDistribution(q, [AffineTransform(loc, scale, event_dim=event_dim)])


@guides.register
def build(problem):
    """The guide, for a model that has parameters to fit."""
    require_suited(
        problem.num_parameters,
        f"oracle does not suit {problem.name}: neither has parameters, so that there is nothing to "
        "fit; guides.oracle.Oracle(problem) is the posterior as a guide",
    )
    return Oracle(problem)

"""Families: which distributions q over one latent may be, as maps from a row of parameters.

A family is built for one latent.  It says how many numbers a row has (`num_parameters`), where a
row starts (`initial_row`), and which distribution a row stands for (`__call__`).
"""

import math

import pyro.distributions as dist
import torch
from torch.distributions import biject_to, constraints

from zoo.errors import ZooError, unknown


class DiagonalNormal:
    """q(z) = prod_i Normal(z_i; loc_i, scale_i), carried into the latent's support.

    Cannot represent correlation, skewness or several modes.  A row is (loc, log scale) in
    unconstrained space.  Source: Kingma & Welling 2014, appendix B.
    """

    def __init__(self, latent):
        if latent.support.is_discrete:
            raise ZooError(
                f"diagonal_normal does not suit latent {latent.name!r}: it is discrete; "
                "categorical does where the number of values is finite"
            )
        self.latent = latent
        self.transform = biject_to(latent.support)
        self.shape = tuple(self.transform.inverse_shape(torch.Size(latent.event_shape)))
        self.size = math.prod(self.shape)
        self.num_parameters = 2 * self.size

    def initial_row(self):
        """A small random loc, unit scale: (2 * size,)."""
        return torch.cat([0.1 * torch.randn(self.size), torch.zeros(self.size)])

    def __call__(self, rows):
        """The distribution of each row: rows (..., 2 * size), batch (...)."""
        loc, log_scale = rows.unflatten(-1, (2, *self.shape)).unbind(-1 - len(self.shape))
        base = dist.Normal(loc, log_scale.exp()).to_event(len(self.shape))
        if _is_identity(self.latent.support):
            return base
        return dist.TransformedDistribution(base, [self.transform])


class Categorical:
    """q(z = k) = softmax(row)_k: every distribution over a finite set of values.

    Serves whole numbers from 0 to K - 1.  Represents any posterior of one such latent.
    """

    def __init__(self, latent):
        support = latent.support
        if latent.num_values is None or getattr(support, "lower_bound", None) != 0:
            raise ZooError(
                f"categorical does not suit latent {latent.name!r}: its support {support} is not "
                "0, 1, ..., K - 1; diagonal_normal serves continuous latents"
            )
        self.num_parameters = latent.num_values

    def initial_row(self):
        """The uniform distribution: (K,)."""
        return torch.zeros(self.num_parameters)

    def __call__(self, rows):
        """The distribution of each row: rows (..., K), batch (...)."""
        return dist.Categorical(logits=rows)


FAMILIES = {"diagonal_normal": DiagonalNormal, "categorical": Categorical}


def choose(family, latent):
    """The family of that name for a latent; "auto" takes the first that suits its support."""
    if family == "auto":
        family = "categorical" if latent.support.is_discrete else "diagonal_normal"
    if family not in FAMILIES:
        raise unknown("family", family, ["auto", *FAMILIES])
    return FAMILIES[family](latent)


def _is_identity(support):
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real

"""Families: which distributions q over one latent may be, as maps from a row of parameters.

A family is built for one latent.  It says how many numbers a row has (`num_parameters`), where a
row, or a batch of them, starts (`initial_row`), and which distribution a row stands for
(`__call__`).
"""

import math

import pyro.distributions as dist
import torch
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ReshapeTransform

from guides.noted import CorrelatedNormal, LowRankNormal
from guides.unsuited import Unsuited, require_suited
from zoo.distributions import BernoulliVector, CategoricalVector, is_boolean
from zoo.errors import ZooError, require, unknown

MAX_FACTOR = 100.0  # of a low-rank covariance, in scales of the numbers' own noise
DENSE = 200  # numbers up to which its triangular factor is computed
MAX_LOG_SCALE = 9.0  # a scale of 0.0001 and a draw near 10 differ by as much as float32 resolves


class DiagonalNormal:
    """q(z) = prod_i Normal(z_i; loc_i, scale_i), carried into the latent's support.

    Cannot represent correlation, skewness or several modes.  A row is (loc, log scale) in
    unconstrained space.  Source: Kingma & Welling 2014, appendix B.
    """

    def __init__(self, latent):
        refuse_unsuited("diagonal_normal", latent)
        self.latent = latent
        self.transform, self.shape = unconstrained(latent)
        self.size = math.prod(self.shape)
        self.num_parameters = 2 * self.size

    def initial_row(self, *batch):
        """A small random loc, unit scale: (*batch, 2 * size)."""
        loc = 0.1 * torch.randn(*batch, self.size)
        return torch.cat([loc, torch.zeros_like(loc)], -1)

    def __call__(self, rows):
        """The distribution of each row: rows (..., 2 * size), batch (...)."""
        loc, log_scale = rows.unflatten(-1, (2, *self.shape)).unbind(-1 - len(self.shape))
        base = dist.Normal(loc, log_scale.exp()).to_event(len(self.shape))
        if is_identity(self.latent.support):
            return base
        return dist.TransformedDistribution(base, [self.transform])


class FullRank:
    """q(z) = Normal(z; loc, L L'), over all of the latent's numbers, carried into its support.

    Cannot represent skewness or several modes.  A row is (loc, log scale, below) in unconstrained
    space: L = diag(scale) (I + B), B strictly lower triangular with entries `below`.
    Source: Kucukelbir et al. 2017, Automatic differentiation variational inference, section 2.4.
    """

    def __init__(self, latent):
        refuse_unsuited("full_rank", latent)
        self.latent = latent
        self.size = math.prod(unconstrained(latent)[1])
        self.num_parameters = 2 * self.size + self.size * (self.size - 1) // 2

    def initial_row(self, *batch):
        """A small random loc, unit scale, no correlation: (*batch, num_parameters)."""
        loc = 0.1 * torch.randn(*batch, self.size)
        return torch.cat([loc, loc.new_zeros(*batch, self.num_parameters - self.size)], -1)

    def __call__(self, rows):
        """The distribution of each row: rows (..., num_parameters), batch (...)."""
        loc, log_scale, below = rows.split(
            [self.size, self.size, rows.shape[-1] - 2 * self.size], -1
        )
        places = torch.tril_indices(self.size, self.size, -1, device=rows.device)
        unit = torch.diag_embed(torch.ones_like(loc)).clone()
        unit[..., *places] = below
        base = CorrelatedNormal(loc, scale_tril=log_scale.exp()[..., None] * unit)
        return _carried(base, self.latent)


class LowRank:
    """q(z) = Normal(z; loc, S (U U' + I) S), S = diag(scale), U of `rank` columns, carried over.

    Cannot represent skewness, several modes, or a correlation of more than `rank` factors beside
    each number's own noise.  A row is (loc, log scale, U) in unconstrained space; U counts up to
    100, since float32 loses the numbers' own noise beside a much larger one, and the log scale
    between -9 and 9, beyond which it loses the draws.
    Source: Ong, Nott & Smith 2018, Gaussian variational approximation with a factor covariance
    structure, eq. 4.
    """

    def __init__(self, latent, rank=1):
        refuse_unsuited("low_rank", latent)
        self.latent, self.rank = latent, rank
        self.size = math.prod(unconstrained(latent)[1])
        self.num_parameters = self.size * (2 + rank)

    def initial_row(self, *batch):
        """A small random loc and U, unit scale: (*batch, num_parameters)."""
        loc, factor = (0.1 * torch.randn(*batch, self.size * count) for count in (1, self.rank))
        return torch.cat([loc, torch.zeros_like(loc), factor], -1)

    def __call__(self, rows):
        """The distribution of each row: rows (..., num_parameters), batch (...)."""
        loc, log_scale, factor = rows.split([self.size, self.size, self.size * self.rank], -1)
        factor = factor.unflatten(-1, (self.size, self.rank)).clamp(-MAX_FACTOR, MAX_FACTOR)
        scale = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
        if self.size > DENSE:
            return _carried(LowRankNormal(loc, scale, factor), self.latent)
        lower = scale[..., None] * _unit_lower(factor)
        return _carried(CorrelatedNormal(loc, scale_tril=lower), self.latent)


class Delta:
    """q(z) = a point, of which a row is the place in unconstrained space.

    It has no log q: what is maximized is the joint density of the latents in their own space, so
    that the point is the MAP (where the density has a maximum).
    """

    def __init__(self, latent):
        refuse_discrete("delta", latent)
        self.latent = latent
        self.transform, self.shape = unconstrained(latent)
        self.num_parameters = math.prod(self.shape)

    def initial_row(self, *batch):
        """A small random place: (*batch, num_parameters)."""
        return 0.1 * torch.randn(*batch, self.num_parameters)

    def __call__(self, rows):
        """The point of each row: rows (..., num_parameters), batch (...)."""
        value = self.transform(rows.unflatten(-1, self.shape) if self.shape else rows[..., 0])
        return dist.Delta(value, event_dim=len(self.latent.event_shape))


class Categorical:
    """q(z = k) = softmax(row)_k: every distribution over a finite set of values.

    Serves whole numbers from 0 to K - 1, those of a Bernoulli among them.  Represents any posterior
    of one such latent.
    """

    def __init__(self, latent):
        self.num_parameters = latent.entry_values
        self.boolean = is_boolean(latent.support)  # whose values torch wants as floats
        require_suited(
            self.num_parameters is not None and not latent.event_shape,
            f"categorical does not suit latent {latent.name!r}: its support {latent.support} is "
            "not 0, 1, ..., K - 1",
        )

    def initial_row(self, *batch):
        """The uniform distribution: (*batch, K)."""
        return torch.zeros(*batch, self.num_parameters)

    def __call__(self, rows):
        """The distribution of each row: rows (..., K), batch (...)."""
        if self.boolean:
            return dist.Bernoulli(logits=rows[..., 1] - rows[..., 0])
        return dist.Categorical(logits=rows)


class DiscreteVector:
    """q(z) = prod_i q(z_i), each a Bernoulli or a categorical: whole numbers, independent.

    Serves vectors of whole numbers from 0 to K - 1.  A row is the logits, of 1 where K = 2.
    Cannot represent dependence between the entries.  Source: Saul, Jaakkola & Jordan 1996, Mean
    field theory for sigmoid belief networks, eq. 11.
    """

    def __init__(self, latent):
        self.num_values = latent.entry_values
        require_suited(
            self.num_values is not None and len(latent.event_shape) == 1,
            f"discrete_vector does not suit latent {latent.name!r}: its support {latent.support} "
            "is no vector of whole numbers 0, 1, ..., K - 1",
        )
        (self.size,) = latent.event_shape
        self.num_parameters = self.size * (1 if self.num_values == 2 else self.num_values)

    def initial_row(self, *batch):
        """Close to uniform, at random: (*batch, num_parameters)."""
        return 0.1 * torch.randn(*batch, self.num_parameters)

    def __call__(self, rows):
        """The distribution of each row: rows (..., num_parameters), batch (...)."""
        if self.num_values == 2:
            return BernoulliVector(rows)
        return CategoricalVector(rows.unflatten(-1, (self.size, self.num_values)))


def _unit_lower(factor):
    """The triangular factor of I + U U', of U (..., size, rank): (..., size, size).

    In double: by Woodbury's identity in float32, as torch's low-rank normal has it, a density is
    wrong by a tenth of a nat where U is large.
    """
    exact = factor.double()
    one = torch.eye(factor.shape[-2], dtype=exact.dtype, device=factor.device)
    return torch.linalg.cholesky(exact @ exact.mT + one).to(factor)


def _carried(base, latent):
    """A distribution of vectors of numbers, as one over a latent of as many."""
    # They keep their last draw, for the base to find the noise of.
    steps = [step.with_cache() for step in from_vector(latent)]
    return dist.TransformedDistribution(base, steps) if steps else base


def from_vector(latent):
    """The transforms, none or more, from a vector of unconstrained numbers to one latent."""
    transform, shape = unconstrained(latent)
    flat = [] if len(shape) == 1 else [ReshapeTransform((math.prod(shape),), shape)]
    return flat if is_identity(latent.support) else [*flat, transform]


def unconstrained(latent):
    """The map into a latent's support, and the shape of one such latent before it."""
    transform = biject_to(latent.support)
    return transform, tuple(transform.inverse_shape(torch.Size(latent.event_shape)))


FAMILIES = {
    "diagonal_normal": DiagonalNormal,
    "full_rank": FullRank,
    "low_rank": LowRank,
    "delta": Delta,
    "categorical": Categorical,
    "discrete_vector": DiscreteVector,
}


def choose_each(family, latents):
    """{latent: its family}, for each of some latents.

    family: as `choose` takes it, or {latent: such}, of these latents and no others.
    """
    names = [latent.name for latent in latents]
    if not isinstance(family, dict):
        family = dict.fromkeys(names, family)
    for name in family:
        if name not in names:
            raise unknown("latent in family:", name, names)
    for name in names:
        require(
            name in family,
            f"family names none for latent {name!r}; give one for each of: {', '.join(names)}",
        )
    return {latent.name: choose(family[latent.name], latent) for latent in latents}


def choose(family, latent):
    """The family of that name for a latent; "auto" takes the first that suits its support.

    family: may also be a function that makes one for a latent, or one that is made.
    Raises ZooError for an unknown name, or a family that does not suit, and says which do.
    """
    if hasattr(family, "initial_row") and not isinstance(family, type):
        return family
    if callable(family):
        return family(latent)
    if family == "auto":
        discrete = "discrete_vector" if latent.event_shape else "categorical"
        family = discrete if latent.support.is_discrete else "diagonal_normal"
        family = family if latent.proper else "delta"
    if not isinstance(family, str) or family not in FAMILIES:
        raise unknown("family", family, ["auto", *FAMILIES])
    try:
        return FAMILIES[family](latent)
    except Unsuited as refusal:
        others = [name for name in FAMILIES if _suits(name, latent)]
        if not others:
            raise
        raise ZooError(f"{refusal}; families that suit: {', '.join(others)}") from refusal


def _suits(name, latent):
    """Whether the family of that name can be made for a latent."""
    try:
        FAMILIES[name](latent)
    except Unsuited:
        return False
    return True


def common(families, family):
    """The name for a guide of these families, asked for as `family`: "delta" if all are points."""
    points = [isinstance(one, Delta) for one in families.values()]
    return "delta" if points and all(points) else family


def refuse_unsuited(family, latent):
    """One line for a family of densities over numbers, where a latent has none."""
    refuse_discrete(family, latent)
    require_suited(
        latent.proper,
        f"{family} does not suit latent {latent.name!r}: its prior is no density, so that only a "
        "point has a sense",
    )


def refuse_discrete(family, latent):
    """One line for a family of continuous latents."""
    require_suited(
        not latent.support.is_discrete,
        f"{family} does not suit latent {latent.name!r}: it is discrete",
    )


def is_identity(support):
    """Whether a support is all real numbers, of whatever shape; a copied guide has a copy of it."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))

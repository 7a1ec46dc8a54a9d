"""Generic ways to the truth: quadrature on a grid for a latent of one or two dimensions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

RADIUS = 7.0  # the prior's mass beyond it is below 1e-11 in each dimension
COARSEST, FINEST = 129, 1025  # points along an axis
TOLERANCE = 0.01  # nats of stated error, above which a row goes on to a finer grid
CELLS_AT_ONCE = 20_000_000  # bounds the memory whatever the number of rows


@dataclass(frozen=True)
class Prior:
    """A density on the latent space, and a box outside which it has next to no mass.

    log_density(z) maps (..., k) to (...); low, high: (k,) the ends of the box.
    """

    log_density: Callable
    low: torch.Tensor
    high: torch.Tensor


def standard_normal(latent_dim, like):
    """The prior Normal(0, I) and its box [-7, 7]^k, of the type and device of `like`."""
    end = like.new_full((latent_dim,), RADIUS)

    def log_density(z):
        return -0.5 * z.square().sum(-1) - 0.5 * latent_dim * math.log(2 * math.pi)

    return Prior(log_density, -end, end)


class Grid:
    """The trapezoid rule for p(x, z) on the prior's box, in one or two dimensions.

    For a smooth integrand that vanishes at the border the rule converges faster than any power
    of the spacing (Trefethen & Weideman 2014, theorem 5.1).  log_likelihood(x, z) maps (n, d)
    rows and (g, k) points to (n, g).
    """

    def __init__(self, log_likelihood, prior, num_points):
        self.log_likelihood = log_likelihood
        options = {"dtype": prior.low.dtype, "device": prior.low.device}
        ends = zip(prior.low.tolist(), prior.high.tolist(), strict=True)
        self.points = _product([torch.linspace(*pair, num_points, **options) for pair in ends])
        self.spacing = (prior.high - prior.low) / (num_points - 1)
        place = torch.arange(num_points, device=prior.low.device)
        self.coarse = _product([place % 2 == 0] * len(prior.low)).all(-1)
        self.border = _product([place % (num_points - 1) == 0] * len(prior.low)).any(-1)
        self.log_weight = prior.log_density(self.points) + self.spacing.log().sum()
        self.prior_error = self.log_weight.logsumexp(-1).abs()

    def log_terms(self, x):
        """log of every cell's share of p(x): (n, g)."""
        return self.log_likelihood(x, self.points) + self.log_weight

    def log_evidence(self, x):
        """log p(x) of every row and its stated error, both (n,).

        The error is the change against the rule of twice the spacing, plus the share of the mass
        that stands at the border, plus what the rule makes of the prior's own integral, 1.
        """
        parts = [self._evidence(rows) for rows in x.split(self._rows_at_once())]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _evidence(self, x):
        terms = self.log_terms(x)
        fine = terms.logsumexp(-1)
        growth = self.points.shape[-1] * math.log(2)
        coarse = terms[:, self.coarse].logsumexp(-1) + growth
        border = (terms[:, self.border].logsumexp(-1) - fine).exp()
        return fine, (fine - coarse).abs() + border + self.prior_error

    def _rows_at_once(self):
        return max(1, CELLS_AT_ONCE // len(self.points))


def _product(axes):
    """The Cartesian product of axes (num_points,), one or more: (g, number of axes)."""
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def quadrature(log_likelihood, x, prior, tolerance=TOLERANCE):
    """log p(x) of every row and its stated error, both (n,) nats.

    prior: a Prior, or how many dimensions a standard normal has.  The rows whose stated error is
    above `tolerance` go on to a finer grid, until the finest; the error is returned either way.
    """
    return _refine(log_likelihood, x, _as_prior(prior, x), tolerance)[:2]


def _as_prior(prior, like):
    return standard_normal(prior, like) if isinstance(prior, int) else prior


def _refine(log_likelihood, x, prior, tolerance):
    """Evidence, stated error, and the number of points along an axis of the finest grid used."""
    value, error = torch.empty_like(x[:, 0]), torch.full_like(x[:, 0], math.inf)
    num_points = COARSEST
    while num_points <= FINEST and (coarse := error > tolerance).any():
        grid = Grid(log_likelihood, prior, num_points)
        value[coarse], error[coarse] = grid.log_evidence(x[coarse])
        num_points = 2 * num_points - 1
    return value, error, (num_points + 1) // 2


class GridPosterior(TorchDistribution):
    """p(z given x) under a prior as `quadrature` takes it, on a grid: batch (n,), event (k,).

    Draws fall uniformly inside a cell, so they are exact up to the cell's width;
    log_prob is log p(x, z) - log p(x) with the quadrature's evidence.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, log_likelihood, x, prior):
        self.x, self.log_likelihood = x, log_likelihood
        self.prior = _as_prior(prior, x)
        self.log_evidence, _, num_points = _refine(log_likelihood, x, self.prior, TOLERANCE)
        self.grid = Grid(log_likelihood, self.prior, num_points)
        super().__init__(x.shape[:1], self.prior.low.shape, validate_args=False)

    @property
    def mean(self):
        return self.expect(lambda z: z)

    @property
    def variance(self):
        return self.expect(torch.square) - self.mean.square()

    def sample(self, sample_shape=()):
        """Draws, sample_shape + (n, k)."""
        count = torch.Size(sample_shape).numel()
        cells = self._map_rows(lambda share: share.multinomial(count, replacement=True))
        corners = self.grid.points[cells.T].reshape(*sample_shape, *self.batch_shape, -1)
        return corners + (torch.rand_like(corners) - 0.5) * self.grid.spacing

    def log_prob(self, value):
        """Log density, (..., n), at value (..., n, k)."""
        flat = value.reshape(-1, *self.batch_shape, value.shape[-1])
        likelihood = torch.stack(
            [self.log_likelihood(row[None], flat[:, n])[0] for n, row in enumerate(self.x)], -1
        )
        log_joint = likelihood + self.prior.log_density(flat)
        return (log_joint - self.log_evidence).reshape(value.shape[:-1])

    def expect(self, function):
        """E[function(z) given x], (n, m), of a function that maps points (g, k) to (g, m)."""
        values = function(self.grid.points)
        return self._map_rows(lambda share: share @ values)

    def _map_rows(self, function):
        blocks = self.x.split(self.grid._rows_at_once())
        return torch.cat([function(self.grid.log_terms(rows).softmax(-1)) for rows in blocks])

"""Generic ways to the truth: quadrature on a grid for a latent of one or two dimensions."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

RADIUS = 7.0  # the prior's mass beyond it is below 1e-11 in each dimension
COARSEST, FINEST = 129, 1025  # points along an axis
TOLERANCE = 0.01  # nats of stated error, above which a row goes on to a finer grid
CELLS_AT_ONCE = 20_000_000  # bounds the memory whatever the number of rows


class Grid:
    """The trapezoid rule for p(x, z) on [-7, 7]^k, k = 1 or 2, under a standard normal prior.

    For a smooth integrand that vanishes at the border the rule converges faster than any power
    of the spacing (Trefethen & Weideman 2014, theorem 5.1).  log_likelihood(x, z) maps (n, d)
    rows and (g, k) points to (n, g).
    """

    def __init__(self, log_likelihood, latent_dim, num_points, like):
        self.log_likelihood = log_likelihood
        axis = torch.linspace(-RADIUS, RADIUS, num_points, dtype=like.dtype, device=like.device)
        self.spacing = 2 * RADIUS / (num_points - 1)
        self.points = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
        every_other = torch.arange(num_points, device=like.device) % 2 == 0
        masks = torch.cartesian_prod(*[every_other] * latent_dim).reshape(-1, latent_dim)
        self.coarse = masks.all(-1)
        self.border = (self.points.abs() >= RADIUS * (1 - 1e-6)).any(-1)
        prior = -0.5 * self.points.square().sum(-1) - 0.5 * latent_dim * math.log(2 * math.pi)
        self.log_weight = prior + latent_dim * math.log(self.spacing)

    def log_terms(self, x):
        """log of every cell's share of p(x): (n, g)."""
        return self.log_likelihood(x, self.points) + self.log_weight

    def log_evidence(self, x):
        """log p(x) of every row and its stated error, both (n,).

        The error is the change against the rule of twice the spacing plus the share of the mass
        that stands at the border.
        """
        parts = [self._evidence(rows) for rows in x.split(self._rows_at_once())]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _evidence(self, x):
        terms = self.log_terms(x)
        fine = terms.logsumexp(-1)
        growth = self.points.shape[-1] * math.log(2)
        coarse = terms[:, self.coarse].logsumexp(-1) + growth
        border = (terms[:, self.border].logsumexp(-1) - fine).exp()
        return fine, (fine - coarse).abs() + border

    def _rows_at_once(self):
        return max(1, CELLS_AT_ONCE // len(self.points))


def quadrature(log_likelihood, x, latent_dim, tolerance=TOLERANCE):
    """log p(x) of every row and its stated error, both (n,) nats.

    The rows whose stated error is above `tolerance` go on to a finer grid, until the finest; the
    error is returned either way.
    """
    return _refine(log_likelihood, x, latent_dim, tolerance)[:2]


def _refine(log_likelihood, x, latent_dim, tolerance):
    """Evidence, stated error, and the number of points along an axis of the finest grid used."""
    value, error = torch.empty_like(x[:, 0]), torch.full_like(x[:, 0], math.inf)
    num_points = COARSEST
    while num_points <= FINEST and (coarse := error > tolerance).any():
        grid = Grid(log_likelihood, latent_dim, num_points, x)
        value[coarse], error[coarse] = grid.log_evidence(x[coarse])
        num_points = 2 * num_points - 1
    return value, error, (num_points + 1) // 2


class GridPosterior(TorchDistribution):
    """p(z given x) under a standard normal prior, from a grid: batch (n,), event (k,).

    Draws fall uniformly inside a cell, so they are exact up to the cell's width;
    log_prob is log p(x, z) - log p(x) with the quadrature's evidence.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, log_likelihood, x, latent_dim):
        self.x, self.log_likelihood = x, log_likelihood
        self.log_evidence, _, num_points = _refine(log_likelihood, x, latent_dim, TOLERANCE)
        self.grid = Grid(log_likelihood, latent_dim, num_points, x)
        super().__init__(x.shape[:1], (latent_dim,), validate_args=False)

    @property
    def mean(self):
        return self._expect(self.grid.points)

    @property
    def variance(self):
        return self._expect(self.grid.points.square()) - self.mean.square()

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
        prior = dist.Normal(torch.zeros_like(flat), 1).to_event(1).log_prob(flat)
        return (likelihood + prior - self.log_evidence).reshape(value.shape[:-1])

    def _expect(self, values):
        return self._map_rows(lambda share: share @ values)

    def _map_rows(self, function):
        blocks = self.x.split(self.grid._rows_at_once())
        return torch.cat([function(self.grid.log_terms(rows).softmax(-1)) for rows in blocks])

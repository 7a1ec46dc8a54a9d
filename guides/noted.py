"""Normals that note the noise of their draws, so that log q of a draw needs no inverse.

The density at any other value inverts the map from noise to draws.  Where that map is nearly
singular the inverse amplifies rounding, log q comes out far too low and the bound far too high; who
maximizes a bound finds just those q.
"""

import math
from copy import copy

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints


class Noted:
    """A distribution that knows the noise of the last value it made."""

    _own_value = _own_noise = None

    def note(self, value, noise):
        """The value, which standard normal noise, of a shape that broadcasts, has made."""
        self._own_value, self._own_noise = value, noise
        return value

    def noise_of(self, value):
        """The noise that made this very tensor; None for any other."""
        return self._own_noise if value is self._own_value else None


def log_standard_normal(noise):
    """log density of standard normal noise (..., size), in nats: (...)."""
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))


class CorrelatedNormal(Noted, dist.MultivariateNormal):
    """Normal(loc, scale_tril scale_tril'), batch (...), event (size,)."""

    def rsample(self, sample_shape=()):
        """Draws: (*sample_shape, ..., size)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.note(self.loc + (self.scale_tril @ noise[..., None])[..., 0], noise)

    def log_prob(self, value):
        """Log densities of values (..., size), in nats: (...)."""
        noise = self.noise_of(value)
        if noise is None:
            return super().log_prob(value)
        spread = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_standard_normal(noise) - spread


class LowRankNormal(Noted, TorchDistribution):
    """Normal(loc, S (U U' + I) S), S = diag(scale); batch (...), event (size,).

    loc, scale: (..., size); factor: U, (..., size, rank).  Draws are loc + S R noise, where
    R = I + U (I + L)^-1 U' and L L' = I + U' U, since R R' = I + U U'; det R is that of L.  Time
    and memory grow with size as a diagonal normal's do.  What concerns U is in double: where U is
    large, float32 loses I beside U' U.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc, scale, factor):
        self.loc, self.scale, self.factor = loc, scale, factor.double()
        self.one = torch.eye(factor.shape[-1], dtype=torch.double, device=factor.device)
        self.lower = torch.linalg.cholesky(self.factor.mT @ self.factor + self.one)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        new = copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @property
    def mean(self):
        """Means: (..., size)."""
        return self.loc.expand(self._extended_shape())

    @property
    def variance(self):
        """Variances of the numbers: (..., size)."""
        own = (1 + self.factor.square().sum(-1)).to(self.scale)
        return (self.scale.square() * own).expand(self._extended_shape())

    def rsample(self, sample_shape=()):
        """Draws: (*sample_shape, ..., size)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.from_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def from_noise(self, noise):
        """The values that standard normal noise (..., size) makes: the same shape."""
        shares = _solved(self.one + self.lower, self._along(noise.double()))
        moved = noise + (self.factor @ shares)[..., 0].to(noise)
        return self.note(self.loc + self.scale * moved, noise)

    def log_prob(self, value):
        """Log densities of values (..., size), in nats: (...)."""
        noise = self.noise_of(value)
        noise = self._noise(value) if noise is None else noise
        spread = self.lower.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(self.loc)
        found = log_standard_normal(noise) - self.scale.log().sum(-1) - spread
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    def _noise(self, value):
        """The noise that makes values (..., size), by R^-1 = I - U (I + L')^-1 L^-1 U'."""
        moved = (value.double() - self.loc) / self.scale
        shares = _solved(self.lower, self._along(moved))
        shares = _solved((self.one + self.lower).mT, shares, upper=True)
        return (moved - (self.factor @ shares)[..., 0]).to(self.loc)

    def _along(self, moved):
        """U' times vectors (..., size): (..., rank, 1)."""
        return self.factor.mT @ moved[..., None]


def _solved(triangle, right, upper=False):
    """The solution of a triangular system whose batch is that of the right side, or less."""
    triangle = triangle.expand(*right.shape[:-2], *triangle.shape[-2:])
    return torch.linalg.solve_triangular(triangle, right, upper=upper)

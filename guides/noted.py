"""Normals that note the noise of their draws, so that log q of a draw needs no inverse.

The density at any other value inverts the map from noise to draws.  Where that map is nearly
singular the inverse amplifies rounding, log q comes out far too low and the bound far too high; who
maximizes a bound finds just those q.
"""

import math

import pyro.distributions as dist
import torch


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

"""Distributions that models share and Pyro writes at a greater cost."""

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints
from torch.nn.functional import softplus


class BernoulliVector(TorchDistribution):
    """Independent Bernoulli variables, by their logits: batch (...), event (d,).

    The same as `dist.Bernoulli(logits=logits).to_event(1)`.  Where values meet several vectors of
    logits, as under enumeration, that takes a logarithm and an exponential for every value and
    vector; here it is a matrix product, since log p(x) = sum_i x_i logits_i - softplus(logits_i).
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits, validate_args=None):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch, whose logits are not repeated."""
        new = type(self)(self.logits, validate_args=False)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @property
    def mean(self):
        """Probabilities of ones, (..., d)."""
        return self.logits.sigmoid().expand(self.batch_shape + self.event_shape)

    @property
    def variance(self):
        """(..., d)."""
        return self.mean * (1 - self.mean)

    def sample(self, sample_shape=()):
        """Vectors of 0 and 1: (*sample_shape, ..., d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(shape))

    def log_prob(self, value):
        """Log probabilities of vectors (..., d), in nats: (...)."""
        if self._validate_args:
            self._validate_sample(value)
        found = _dot(self.logits, value) - softplus(self.logits).sum(-1)
        return found.expand(torch.broadcast_shapes(self.batch_shape, value.shape[:-1]))


def _dot(logits, value):
    """Sums of products over the last axis, by one matrix product where rows share their logits."""
    shared = logits.dim() >= 2 and value.dim() >= 2 and logits.shape[-2] == 1
    if shared and value.shape[-2] > 1:
        return (logits @ value.mT).squeeze(-2)
    return (logits * value).sum(-1)

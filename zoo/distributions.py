"""Distributions that models share and Pyro writes at a greater cost."""

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import identity_transform
from torch.nn.functional import softplus

MAX_VALUES = 2**12
"""Vectors of which there are more are not enumerated: each is a pass of the model for every row."""


def all_vectors(length, num_values=2, like=None):
    """Every vector of whole numbers below `num_values`: (num_values^length, length), in order.

    like: a tensor of the device and type to have.
    """
    # No powers: Inductor's libraries take those of whole numbers for numbers with a point.
    values = torch.arange(num_values, device=None if like is None else like.device)
    vectors = torch.cartesian_prod(*[values] * length).reshape(-1, length)
    return vectors if like is None else vectors.to(like.dtype)


class FiniteVector(TorchDistribution):
    """Base of the distributions over vectors of `length` whole numbers below `base`."""

    base, length = 2, 0

    @property
    def has_enumerate_support(self):
        """Whether the vectors are few enough to sum over: at most MAX_VALUES."""
        return self.base**self.length <= MAX_VALUES

    def enumerate_support(self, expand=True):
        """All vectors: (num_values, ..., length), the batch's dimensions 1 unless expanded."""
        if not self.has_enumerate_support:
            raise NotImplementedError(f"{self.base}^{self.length} values are too many to enumerate")
        values = all_vectors(self.length, self.base, self._like())
        values = values.reshape(-1, *[1] * len(self.batch_shape), self.length)
        return values.expand(-1, *self.batch_shape, -1) if expand else values


class BernoulliVector(FiniteVector):
    """Independent Bernoulli variables, by their logits: batch (...), event (d,).

    The same as `dist.Bernoulli(logits=logits).to_event(1)`.  Where values meet several vectors of
    logits, as under enumeration, that takes a logarithm and an exponential for every value and
    vector; here it is a matrix product, since log p(x) = sum_i x_i logits_i - softplus(logits_i).
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits, validate_args=None):
        self.logits, self.length = logits, logits.shape[-1]
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
        if not value.is_floating_point():  # a latent of two values may hold whole numbers
            value = value.to(self.logits.dtype)
        found = _dot(self.logits, value) - softplus(self.logits).sum(-1)
        if found.shape == self.batch_shape:  # as it mostly is; to work shapes out takes long
            return found
        return found.expand(torch.broadcast_shapes(self.batch_shape, value.shape[:-1]))

    def _like(self):
        return self.logits


def _dot(logits, value):
    """Sums of products over the last axis, by one matrix product where rows share either."""
    if _shared(logits, value):
        if logits.shape[-2] == 1:
            return (logits @ value.mT).squeeze(-2)
        return (value @ logits.mT).squeeze(-2)
    return (logits * value).sum(-1)


def _shared(logits, value):
    """Whether all rows (..., n, d) of one have the same vector (..., 1, d) of the other."""
    if logits.dim() < 2 or value.dim() < 2:
        return False
    counts = logits.shape[-2], value.shape[-2]
    return min(counts) == 1 < max(counts)


class CategoricalVector(FiniteVector):
    """Independent categorical variables, by their logits (..., length, K): event (length,).

    The same as `dist.Categorical(logits=logits).to_event(1)`, and enumerated where that is cheap.
    Where rows of values share the logits, as under enumeration, a density is a matrix product of
    the one-hot values.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}

    def __init__(self, logits, validate_args=None):
        self.logits = logits.log_softmax(-1)
        self.length, self.base = logits.shape[-2:]
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return whole_numbers(self.base)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        return type(self)(logits, validate_args=False)

    def sample(self, sample_shape=()):
        """Vectors of whole numbers: (*sample_shape, ..., length)."""
        with torch.no_grad():
            return torch.distributions.Categorical(logits=self.logits).sample(sample_shape)

    def log_prob(self, value):
        """Log probabilities of vectors (..., length), in nats: (...)."""
        if self._validate_args:
            self._validate_sample(value)
        if not _shared(self.logits.flatten(-2), value):
            return picked(self.logits, value).sum(-1)
        levels = torch.arange(self.base, device=value.device)
        one_hot = (value[..., None] == levels).to(self.logits)
        least = torch.finfo(self.logits.dtype).min  # for -inf, which times 0 would be NaN
        found = _dot(self.logits.clamp(min=least).flatten(-2), one_hot.flatten(-2))
        return found.masked_fill(found <= least, -torch.inf)

    def _like(self):
        return torch.zeros((), dtype=torch.long, device=self.logits.device)


def whole_numbers(count):
    """The support of vectors of whole numbers from 0 to count - 1."""
    return constraints.independent(constraints.integer_interval(0, count - 1), 1)


def picked(table, value):
    """Entries of table (..., K) at whole numbers (...), which broadcast: (...)."""
    value = value.long()
    shape = torch.broadcast_shapes(table.shape[:-1], value.shape)
    index = value.expand(shape)[..., None]
    return table.expand(*shape, table.shape[-1]).gather(-1, index)[..., 0]


class _Improper(constraints.Constraint):
    """The support of real numbers under a prior that is no density: a point alone has a sense.

    A distribution over such numbers would spread without end, as nothing keeps it together.
    """

    def check(self, value):
        return value.isfinite()


improper = _Improper()
biject_to.register(improper)(lambda _: identity_transform)


def of_entries(support):
    """The support of each number of a vector, or of a single number."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


# By their types: a copy of a guide has copies of supports.
def is_improper(support):
    """Whether a support is of numbers whose prior is no density."""
    return isinstance(of_entries(support), _Improper)


def is_boolean(support):
    """Whether a support is of numbers 0 and 1 with a point, as Bernoulli draws are."""
    return isinstance(of_entries(support), type(constraints.boolean))


def entry_values(support):
    """K where each number is one of 0, 1, ..., K - 1; None where it is not."""
    if is_boolean(support):
        return 2
    support = of_entries(support)
    from_zero = getattr(support, "lower_bound", None) == 0 and hasattr(support, "upper_bound")
    return int(support.upper_bound) + 1 if from_zero and support.is_discrete else None


class Flat(TorchDistribution):
    """No preference among vectors of real numbers, event (length,): every one scores 0.

    It is no distribution, as its mass is infinite, and says so by its support.  Programs without
    data and checks need draws nevertheless: they are standard normal, a mere place to start.
    like: a tensor of the device and type to have.
    """

    arg_constraints = {}
    support = constraints.independent(improper, 1)

    def __init__(self, length, like):
        self.like = like
        super().__init__(torch.Size(), torch.Size((length,)), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        new = type(self)(*self.event_shape, self.like)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def sample(self, sample_shape=()):
        """Standard normal vectors: (*sample_shape, ..., length)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.like.dtype, device=self.like.device)

    def log_prob(self, value):
        """Zeros, (...), for vectors (..., length)."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        return value.new_zeros(batch)

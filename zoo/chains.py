"""Distributions over vectors in which each entry hangs on one that comes before it."""

import math

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Categorical, constraints
from torch.nn.functional import softplus

from zoo.distributions import FiniteVector, picked, whole_numbers
from zoo.errors import require

MAX_LOGIT = 30.0  # of a coin that always fell the same way: infinity would give 0 times infinity


class BernoulliTree(FiniteVector):
    """Binary columns, each given its parent: p(x) = p(x_root) prod_i p(x_i given x_parent(i)).

    first: () logit of the root, the column order[0]; rest: (d - 1, 2) logits of a 1 in the columns
    order[1:], given that the parent is 0 or 1; order: (d,) columns, parents before children;
    parent: (d - 1,) the parents of the columns order[1:].
    """

    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, first, rest, order, parent):
        self.first, self.rest, self.order, self.parent = first, rest, order, parent
        self.length = len(order)
        super().__init__(torch.Size(), torch.Size((self.length,)), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch, whose logits are not repeated."""
        new = type(self)(self.first, self.rest, self.order, self.parent)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value):
        """Log probabilities of vectors (..., d), in nats: (...)."""
        value = value.to(self.first)
        root, children = value[..., self.order].tensor_split([1], -1)
        logits = torch.where(value[..., self.parent] > 0, self.rest[:, 1], self.rest[:, 0])
        found = (children * logits - softplus(logits)).sum(-1)
        found = found + (root * self.first - softplus(self.first))[..., 0]
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    @torch.no_grad()
    def sample(self, sample_shape=()):
        """Vectors of 0 and 1, drawn column by column, parents first: (*sample_shape, ..., d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like = {"dtype": self.first.dtype, "device": self.first.device}
        noise = torch.rand(self.length, shape[:-1].numel(), **like)
        columns = torch.empty_like(noise)
        root, *children = self.order.tolist()
        columns[root] = (noise[0] < self.first.sigmoid()).to(noise)
        chances = self.rest.sigmoid()
        for i, (child, parent) in enumerate(zip(children, self.parent.tolist(), strict=True)):
            chance = torch.where(columns[parent] > 0, chances[i, 1], chances[i, 0])
            columns[child] = (noise[1 + i] < chance).to(noise)
        return columns.T.reshape(shape)

    def _like(self):
        return self.first


def smoothed_logits(ones, count, smoothing):
    """The likeliest logits of coins that fell `ones` times on 1 in `count` tosses, both (...).

    smoothing: imagined tosses of each value, besides.  A coin that was never tossed is fair.
    """
    share = (ones.double() + smoothing) / (count + 2 * smoothing)
    return share.logit().clamp(-MAX_LOGIT, MAX_LOGIT).nan_to_num(0.0)


def likeliest_rest(children, parents, both, num_data, smoothing):
    """The likeliest logits of columns given their parents, for a `BernoulliTree`: (m, 2).

    children, parents, both: in how many of the rows the column, its parent, and both are 1, (m,).
    """
    zero = smoothed_logits(children - both, num_data - parents, smoothing)
    return torch.stack([zero, smoothed_logits(both, parents, smoothing)], -1)


class StateChain(FiniteVector):
    """States z_1 ... z_T, whole numbers below K, each drawn given the one before.

    first: (..., K) log probabilities of z_1; steps: (..., T - 1, K, K) those of z_(t+1) in the
    columns, given z_t in the rows.  With backward=True the chain runs from z_T to z_1: first is
    that of z_T, and steps come in that order.  Both are normalized here.
    """

    arg_constraints = {}

    def __init__(self, first, steps, backward=False):
        self.first, self.steps = first.log_softmax(-1), steps.log_softmax(-1)
        self.base, self.length, self.backward = first.shape[-1], steps.shape[-3] + 1, backward
        batch = torch.broadcast_shapes(first.shape[:-1], steps.shape[:-3])
        super().__init__(batch, torch.Size((self.length,)), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return whole_numbers(self.base)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch, whose tables are not repeated."""
        new = type(self)(self.first, self.steps, self.backward)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value):
        """Log probabilities of paths (..., T), in nats: (...)."""
        value = self._turned(value.long())
        pairs = value[..., :-1] * self.base + value[..., 1:]
        found = picked(self.steps.flatten(-2), pairs).sum(-1) + picked(self.first, value[..., 0])
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    @property
    def chain_length(self):
        """Number of steps, by which a guide knows a chain."""
        return self.length

    @torch.no_grad()
    def sample(self, sample_shape=()):
        """Paths, drawn state by state: (*sample_shape, ..., T)."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        path = [Categorical(logits=self.first.expand(*shape, self.base)).sample()]
        for step in self.steps.unbind(-3):
            rows = step.expand(*shape, self.base, self.base)
            place = path[-1][..., None, None].expand(*shape, 1, self.base)
            path.append(Categorical(logits=rows.gather(-2, place)[..., 0, :]).sample())
        return self._turned(torch.stack(path, -1))

    def marginals(self):
        """Probabilities of every state at every time: (..., T, K)."""
        each = [self.first.exp()]
        for step in self.steps.unbind(-3):
            each.append((each[-1][..., None, :] @ step.exp())[..., 0, :])
        found = torch.stack(torch.broadcast_tensors(*each), -2)
        found = found.flip(-2) if self.backward else found
        return found.expand(*self.batch_shape, *found.shape[-2:])

    @property
    def mean(self):
        """Means of the states as numbers: (..., T)."""
        return self.marginals() @ self._numbers()

    @property
    def variance(self):
        """(..., T)."""
        squares = (self._numbers() - self.mean[..., None]).square()
        return (self.marginals() * squares).sum(-1)

    def _numbers(self):
        return torch.arange(self.base).to(self.first)

    def _turned(self, path):
        return path.flip(-1) if self.backward else path

    def _like(self):
        return torch.zeros((), dtype=torch.long, device=self.first.device)


class GaussianChain(TorchDistribution):
    """States of k numbers: z_1 ~ Normal(0, I), z_(t+1) ~ Normal(A z_t, I), side by side.

    transition: A, (k, k); the event is (length k,), one state after the other.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transition, length):
        self.transition, self.length = transition, length
        event_shape = torch.Size((length * len(transition),))
        super().__init__(torch.Size(), event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        new = type(self)(self.transition, self.length)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @property
    def chain_length(self):
        """Number of steps, by which a guide knows a chain."""
        return self.length

    def rsample(self, sample_shape=()):
        """States, one after the other: (*sample_shape, ..., length k)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like = {"dtype": self.transition.dtype, "device": self.transition.device}
        noise = torch.randn(shape, **like).unflatten(-1, (self.length, -1)).unbind(-2)
        states = [noise[0]]
        for innovation in noise[1:]:
            states.append(states[-1] @ self.transition.mT + innovation)
        return torch.cat(states, -1)

    def log_prob(self, value):
        """Log densities of states (..., length k), in nats: (...)."""
        z = value.unflatten(-1, (self.length, -1))
        surprise = z[..., 1:, :] - z[..., :-1, :] @ self.transition.mT
        squares = surprise.square().sum((-2, -1)) + z[..., 0, :].square().sum(-1)
        found = -0.5 * (squares + value.shape[-1] * math.log(2 * math.pi))
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    @property
    def mean(self):
        """(..., length k)."""
        return self.transition.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self):
        """(..., length k)."""
        covariance = [torch.eye(len(self.transition)).to(self.transition)]
        for _ in range(self.length - 1):
            before = self.transition @ covariance[-1] @ self.transition.mT
            covariance.append(before + covariance[0])
        found = torch.stack(covariance).diagonal(dim1=-2, dim2=-1).flatten()
        return found.expand(self.batch_shape + self.event_shape)


def check_columns(data):
    """Refuse rows of a single column, which has no other to hang on."""
    require(
        data.width >= 2,
        "a chain or tree needs at least 2 columns, got 1: independent_bernoulli is its model",
    )


def check_steps(steps, data):
    """Refuse a number of steps that is no whole number of at least 2, or splits rows unevenly."""
    require(
        type(steps) is int and steps >= 2,
        f"steps must be a whole number of at least 2, got {steps!r}",
    )
    require(
        data.width % steps == 0,
        f"steps must divide the data's {data.width} columns evenly, got {steps}",
    )

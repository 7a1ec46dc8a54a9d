"""NADE: the probability of every pixel from a network on the pixels before it.

A density over binary vectors that is exact and still flexible: the chain rule with a network for
each factor, whose hidden units share their weights, so that all of them together cost no more than
one.  It has no latents; with `orderless` the order of the pixels becomes one.

Story:
    order_n ~ Uniform over M permutations         (with orderless)
    x_ni | x_n1 ... x_n(i-1) ~ Bernoulli(sigmoid(b_i + V_i h_i)), entries in turn,
    h_i = sigmoid(c + sum_(j < i) W_j x_nj)       hidden units
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0: there are no latents, or one, the order, with a sum over its M values.
Differs from the source in: Adam takes the place of plain gradients with a falling rate.  With
    orderless, a mixture of one network's densities in M orders that are drawn once, where Uria et
    al. train on all d! orders: so the density that is trained is the one that is reported.  Under a
    guide of equal shares the bound is theirs, an average over orders; its evidence is that of their
    ensemble.  What is known of a pixel, beside its value, enters by weights U, as they recommend.
Raises: ZooError for values other than 0 and 1, hidden or num_orders < 1, or orderless no bool.
Source: Larochelle & Murray 2011, The neural autoregressive distribution estimator, eq. 2-4 and
    algorithm 1; Uria, Murray & Larochelle 2014, A deep and tractable density estimator, eq. 8-15.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import constraints

import zoo
from zoo.autoregressive import Autoregressive, by_blocks
from zoo.data import as_dataset
from zoo.distributions import picked
from zoo.errors import require_count, require_flag

CELLS_AT_ONCE = 2**18  # rows x columns x hidden units in a block: what the processor's cache holds


class NADE(PyroModule):
    """The program; `weight`, `output` (d, H), `hidden_bias` (H,), `bias` (d,), `known` (d, H)."""

    def __init__(self, width, hidden, num_orders=None):
        super().__init__(zoo.unique("nade"))
        self.weight = nn.Parameter(torch.empty(width, hidden))
        self.output = nn.Parameter(torch.empty(width, hidden))
        self.hidden_bias = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.empty(width))
        self.known = None if num_orders is None else nn.Parameter(torch.empty(width, hidden))
        self.register_buffer("orders", None if num_orders is None else _orders(width, num_orders))
        self.reset_parameters()

    def reset_parameters(self):
        """Small random weights, fair coins."""
        width, hidden = self.weight.shape
        with torch.no_grad():
            for bias in (self.hidden_bias, self.bias):
                bias.zero_()
            self.output.uniform_(-1, 1).div_(math.sqrt(hidden))
            for weight in [self.weight] if self.known is None else [self.weight, self.known]:
                weight.uniform_(-1, 1).div_(math.sqrt(width))

    def forward(self, x=None, index=None):
        recursion = Recursion(self.weight, self.output, self.hidden_bias, self.bias, self.known)
        with zoo.datum(x, index) as rows:
            if self.orders is None:
                return pyro.sample("x", recursion.density(), obs=rows)
            equal = self.bias.new_zeros(len(self.orders))
            order = pyro.sample("order", dist.Categorical(logits=equal))
            return pyro.sample("x", InOrder(recursion, self.orders, order), obs=rows)


class Recursion:
    """The logits of every entry given those before it, which stand to the left of it."""

    def __init__(self, weight, output, hidden_bias, bias, known=None):
        self.weight, self.output, self.known = weight, output, known
        self.hidden_bias, self.bias = hidden_bias, bias

    def density(self):
        """The distribution of the entries."""
        return Autoregressive(self, len(self.bias), self.bias)

    def taken_in(self, order):
        """The same for entries in another order (d,)."""
        parts = self.weight[order], self.output[order], self.hidden_bias, self.bias[order]
        return Recursion(*parts, None if self.known is None else self.known[order])

    def __call__(self, x):
        """Rows (m, d) to logits (m, d), in blocks of columns.

        A block starts from the sum over all columns before it, which is passed on; within it the
        sums are one product of matrices.
        """
        size = max(1, CELLS_AT_ONCE // (len(x) * len(self.hidden_bias)))
        before, logits = self.hidden_bias, []
        for rows, output, *weights in self._blocks(x, size):
            every = torch.ones_like(rows[0])
            earlier = every.expand(len(every), -1).tril(-1)
            inside = added(rows[:, None] * earlier, earlier, *weights)
            hidden = (before[..., None, :] + inside).sigmoid()
            logits.append((hidden * output).sum(-1))
            before = before + added(rows, every, *weights)
        return torch.cat(logits, 1) + self.bias

    def at(self, x, place):
        """Logits of that place alone: (m,)."""
        rows, weight = x[:, :place], self.weight[:place]
        known = None if self.known is None else self.known[:place]
        hidden = (self.hidden_bias + added(rows, torch.ones_like(rows[0]), weight, known)).sigmoid()
        return hidden @ self.output[place] + self.bias[place]

    def _blocks(self, x, size):
        """(rows, output, weight, known) of every block of columns."""
        parts = [x.split(size, 1), self.output.split(size), self.weight.split(size)]
        known = [None] * len(parts[0]) if self.known is None else self.known.split(size)
        return zip(*parts, known, strict=True)


def added(values, mask, weight, known):
    """What entries (..., b) add to the hidden units, those in mask (..., b) being known."""
    return values @ weight if known is None else values @ weight + mask @ known


class InOrder(TorchDistribution):
    """p(x given order): for every value of `order` (...) the entries in that row of `orders`."""

    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, recursion, orders, order):
        self.recursion, self.orders, self.order = recursion, orders, order
        super().__init__(order.shape, orders.shape[1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        return InOrder(self.recursion, self.orders, self.order.expand(batch_shape))

    def log_prob(self, value):
        """Log probabilities of vectors (..., d): those in all orders, of which one is picked."""
        each = [self.recursion.taken_in(o).density().log_prob(value[..., o]) for o in self.orders]
        return picked(torch.stack(each, -1), self.order)

    @torch.no_grad()
    def sample(self, sample_shape=()):
        """Draws, sample_shape + (..., d): in all orders, of which one is picked."""
        shape = self._extended_shape(torch.Size(sample_shape))
        parts = [self.recursion.taken_in(o).density().sample(shape[:-1]) for o in self.orders]
        parts = [part[..., o.argsort()] for part, o in zip(parts, self.orders, strict=True)]
        return picked(torch.stack(parts, -1), self.order.expand(shape[:-1])[..., None])


def _orders(width, num_orders):
    """Permutations of the columns, drawn at random but always the same: (num_orders, d)."""
    random = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(width, generator=random) for _ in range(num_orders)])


def _log_p(model, x, order):
    """log p(x) of every row, one entry after the other.  Larochelle & Murray 2011, algorithm 1."""
    a, log_p = model.hidden_bias.expand(len(x), -1), 0.0
    for i in order.tolist():
        logit = model.bias[i] + a.sigmoid() @ model.output[i]
        log_p = log_p + nn.functional.logsigmoid((2 * x[:, i] - 1) * logit)
        a = a + x[:, i, None] * model.weight[i]
        a = a if model.known is None else a + model.known[i]
    return log_p


def log_joint(model, x, order=None):
    """log p(x), or log p(x, order), of every row, (n,) nats; x (n, d), order (n,)."""
    if model.orders is None:
        turns = torch.arange(x.shape[1])
        return by_blocks(lambda rows: _log_p(model, rows, turns), x)
    each = by_blocks(lambda rows: component_log_joint(model, rows), x)
    return sum((order == m) * each[:, m] for m in range(len(model.orders)))


def component_log_joint(model, x):
    """log p(x, order = m) of every row and order: (n, M)."""
    each = [_log_p(model, x, order) for order in model.orders]
    return torch.stack(each, -1) - math.log(len(each))


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats; the sum over orders."""
    return by_blocks(lambda rows: component_log_joint(model, rows), x).logsumexp(-1)


def posterior(model, x):
    """p(order given x), Categorical with batch (n,)."""
    return dist.Categorical(logits=by_blocks(lambda rows: component_log_joint(model, rows), x))


@zoo.register
def build(data="digits", hidden=50, orderless=False, num_orders=8):
    """The problem; data as `zoo.data.as_dataset` takes it, binary; num_orders is for orderless."""
    require_count(hidden=hidden, num_orders=num_orders)
    require_flag(orderless=orderless)
    data = as_dataset(data, binary=True)
    exact = zoo.Truth("T0", "sum over the orders", log_evidence, posterior)
    return zoo.Problem(
        model=NADE(data.width, hidden, num_orders if orderless else None),
        data=data,
        log_joint=log_joint,
        truth=exact if orderless else zoo.problem.NO_TRUTH,
    )

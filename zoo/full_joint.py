"""Full joint table: a probability for every vector of zeros and ones, and no assumption at all.

The top of the ladder of assumptions: 2^n - 1 parameters for n columns, where
`independent_bernoulli` has n and `markov_chain` 2n - 1.  It can be any distribution, and learns
nothing of a vector from those that are like it: at 20 columns it has a million parameters.

Story:
    x_n ~ Table(theta), event (d,)    binary vector, one of 2^d, theta_s its probability
Data: rows of 0 and 1 of at most 20 columns.  `columns` keeps so many, the most balanced, whose
    share of ones in the training rows is nearest to 1/2, in their order; default ten pixels of the
    digits, black where at least half.
Truth: T0, there are no latents; maximum likelihood in closed form, the vectors' shares.
Differs from the source in: parameters in logits, relative to the vector of ones, and `smoothing`
    imagined rows of each vector.
Raises: ZooError for more than 20 columns, values other than 0 and 1, negative smoothing, or
    columns that is no whole number from 1 to 20, or more than there are.
Source: Koller & Friedman 2009, Probabilistic graphical models, section 3.1.
"""

from dataclasses import replace

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import pad

import zoo
from zoo.chains import MAX_LOGIT
from zoo.data import as_dataset
from zoo.distributions import FiniteVector
from zoo.errors import require, require_smoothing

MAX_COLUMNS = 20  # a table of a million
DEFAULT_COLUMNS = 10  # of a named set


class Table(FiniteVector):
    """Any distribution over binary vectors: logits (2^d,) in their order, the last column fastest.

    The logits need not be normalized.  powers: (d,) how far apart the two values of a column stand.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits, powers):
        self.logits, self.powers, self.length = logits, powers, len(powers)
        super().__init__(torch.Size(), torch.Size((self.length,)), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch, for which the table stands once."""
        new = type(self)(self.logits, self.powers)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value):
        """Log probabilities of vectors (..., d), in nats: (...)."""
        found = self.logits.log_softmax(-1)[places(value, self.powers)]
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    @torch.no_grad()
    def sample(self, sample_shape=()):
        """Vectors of 0 and 1: (*sample_shape, ..., d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        rising = self.logits.double().softmax(-1).cumsum(-1)
        noise = torch.rand(shape[:-1], dtype=rising.dtype, device=rising.device)
        found = torch.searchsorted(rising, noise * rising[-1], right=True)[..., None]
        return (found // self.powers % 2).to(self.logits)

    def _like(self):
        return self.logits


def places(x, powers):
    """Where vectors (..., d) stand in the table: (...), whole numbers."""
    return (x.long() * powers).sum(-1)


class FullJoint(PyroModule):
    """The program; `logits` (2^d - 1,) of all vectors but the last, whose logit is 0."""

    def __init__(self, width):
        super().__init__(zoo.unique("full_joint"))
        self.logits = nn.Parameter(torch.empty(2**width - 1))
        self.register_buffer("powers", 2 ** torch.arange(width - 1, -1, -1))
        self.reset_parameters()

    def reset_parameters(self):
        """All vectors equally likely."""
        nn.init.zeros_(self.logits)

    def forward(self, x=None, index=None):
        table = Table(pad(self.logits, (0, 1)), self.powers)
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", table, obs=rows)


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d).  log theta_s = eta_s - log sum exp eta."""
    s = torch.zeros_like(x[:, 0])
    for column in x.unbind(-1):
        s = 2 * s + column
    eta = torch.cat([model.logits, torch.zeros_like(model.logits[:1])])
    return eta[s.long()] - eta.logsumexp(-1)


def maximum_likelihood(model, x, smoothing=0.0):
    """Put the vectors' shares of the rows x (n, d) into the model, `smoothing` rows of each added.

    A vector that has no row gets the share of e^-30 rows.
    """
    place, size = places(x, model.powers), len(model.logits) + 1
    counts = torch.bincount(place, minlength=size).double() + smoothing
    logs = counts.log().clamp(min=-MAX_LOGIT)
    model.logits.data.copy_(logs[:-1] - logs[-1])


@zoo.register
def build(data="digits", columns=None, smoothing=1.0):
    """The problem; data as `zoo.data.as_dataset` takes it, binary.

    columns: how many columns to keep; None keeps ten of a named set, and all of other rows.
    """
    require_smoothing(smoothing)
    if columns is None and isinstance(data, str):
        columns = DEFAULT_COLUMNS
    data = as_dataset(data, binary=True)
    data = data if columns is None else most_balanced(data, columns)
    require(
        data.width <= MAX_COLUMNS,
        f"a table of 2^{data.width} vectors is too large: take at most {MAX_COLUMNS} columns, "
        "such as the most balanced ones with columns=10",
    )
    return zoo.Problem(
        model=FullJoint(data.width),
        data=data,
        log_joint=log_joint,
        maximum_likelihood=lambda model, x: maximum_likelihood(model, x, smoothing),
    )


def most_balanced(data, count):
    """The set with `count` of its columns, those whose share of ones is nearest to 1/2."""
    most = min(data.width, MAX_COLUMNS)
    require(
        type(count) is int and 1 <= count <= most,
        f"columns must be a whole number from 1 to {most}, got {count!r}",
    )
    distance = (data.train.double().mean(0) - 0.5).abs()
    kept = distance.argsort(stable=True)[:count].sort().values
    return replace(data.map(lambda rows: rows[:, kept]), image_shape=None)

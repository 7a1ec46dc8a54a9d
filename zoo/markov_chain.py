"""Markov chain: every column hangs on the one before it, and on nothing else.

The middle of the ladder of assumptions: 2n - 1 parameters for n columns, where
`independent_bernoulli` has n and `full_joint` 2^n - 1.  It knows that neighbors are alike, but a
picture's rows meet in it only at their ends, and it forgets what lies two columns back.

Story:
    x_n1               ~ Bernoulli(p_1)         first column of datum n
    x_ni | x_n(i-1)=a  ~ Bernoulli(p_ia)        column i, its own coin for each a of 0 and 1
Data: rows of 0 and 1; default the digits, pixels at least half black, row after row.
Truth: T0, there are no latents; maximum likelihood in closed form, shares of ones after 0 and 1.
Differs from the source in: the chances change from column to column; parameters in logits, and
    `smoothing` imagined tosses of each value for each of the 2n - 1 coins.
Raises: ZooError for values other than 0 and 1, a single column, or negative smoothing.
Source: Bishop 2006, Pattern Recognition and Machine Learning, section 13.1.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import logsigmoid

import zoo
from zoo.chains import BernoulliTree, check_columns, likeliest_rest, smoothed_logits
from zoo.data import as_dataset
from zoo.errors import require_smoothing


class MarkovChain(PyroModule):
    """The program; `first` () logit, `rest` (d - 1, 2) logits after a 0 and after a 1."""

    def __init__(self, width):
        super().__init__(zoo.unique("markov_chain"))
        self.first = nn.Parameter(torch.empty(()))
        self.rest = nn.Parameter(torch.empty(width - 1, 2))
        self.register_buffer("order", torch.arange(width))
        self.reset_parameters()

    def reset_parameters(self):
        """Fair coins."""
        nn.init.zeros_(self.first)
        nn.init.zeros_(self.rest)

    def forward(self, x=None, index=None):
        chain = BernoulliTree(self.first, self.rest, self.order, self.order[:-1])
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", chain, obs=rows)


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d).  Bishop 2006, eq. 13.2."""
    before, after = x[:, :-1], x[:, 1:]
    one, zero = logsigmoid(model.rest), logsigmoid(-model.rest)
    first = x[:, 0] * logsigmoid(model.first) + (1 - x[:, 0]) * logsigmoid(-model.first)
    after_0 = (1 - before) * (after * one[:, 0] + (1 - after) * zero[:, 0])
    after_1 = before * (after * one[:, 1] + (1 - after) * zero[:, 1])
    return first + (after_0 + after_1).sum(-1)


def maximum_likelihood(model, x, smoothing=0.0):
    """Put the shares of ones after each value into the model, `smoothing` tosses of each added."""
    ones, both = x.sum(0), (x[:, :-1] * x[:, 1:]).sum(0)
    rest = likeliest_rest(ones[1:], ones[:-1], both, len(x), smoothing)
    model.first.data.copy_(smoothed_logits(ones[0], len(x), smoothing))
    model.rest.data.copy_(rest)


@zoo.register
def build(data="digits", smoothing=1.0):
    """The problem; data as `zoo.data.as_dataset` takes it, binary."""
    require_smoothing(smoothing)
    data = as_dataset(data, binary=True)
    check_columns(data)
    return zoo.Problem(
        model=MarkovChain(data.width),
        data=data,
        log_joint=log_joint,
        maximum_likelihood=lambda model, x: maximum_likelihood(model, x, smoothing),
    )

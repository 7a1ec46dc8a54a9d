"""Independent pixels: every column has a coin of its own, and no row depends on anything.

The bottom of the ladder of assumptions: n parameters for n columns, where `markov_chain` has
2n - 1 and `full_joint` 2^n - 1.  What a model of the dependence between columns is worth shows
against it.

Story:
    x_n ~ Bernoulli(p), event (d,)    binary vector
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0, there are no latents; maximum likelihood in closed form, the columns' means.
Differs from the source in: parameters in logits, and `smoothing` imagined rows of each value.
Raises: ZooError for values other than 0 and 1, or negative smoothing.
Source: Bishop 2006, Pattern Recognition and Machine Learning, section 2.1.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.chains import smoothed_logits
from zoo.data import as_dataset
from zoo.densities import log_bernoulli
from zoo.distributions import BernoulliVector
from zoo.errors import require_smoothing


class IndependentBernoulli(PyroModule):
    """The program; `logits` (d,)."""

    def __init__(self, width):
        super().__init__(zoo.unique("independent_bernoulli"))
        self.logits = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self):
        """Fair coins."""
        nn.init.zeros_(self.logits)

    def forward(self, x=None, index=None):
        logits = self.logits
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", BernoulliVector(logits), obs=rows)


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d).  Bishop 2006, eq. 2.2."""
    return log_bernoulli(x, model.logits)


def maximum_likelihood(model, x, smoothing=0.0):
    """Put the columns' shares of ones into the model, `smoothing` rows of 0 and of 1 added."""
    model.logits.data.copy_(smoothed_logits(x.sum(0), len(x), smoothing))


@zoo.register
def build(data="digits", smoothing=1.0):
    """The problem; data as `zoo.data.as_dataset` takes it, binary."""
    require_smoothing(smoothing)
    data = as_dataset(data, binary=True)
    return zoo.Problem(
        model=IndependentBernoulli(data.width),
        data=data,
        log_joint=log_joint,
        maximum_likelihood=lambda model, x: maximum_likelihood(model, x, smoothing),
    )

"""Coin: is it fair?

One unknown number and the oldest closed form of all: the test bed of anything that approximates a
posterior whose support is an interval.

Story:
    p       ~ Beta(alpha, beta)     probability of heads
    x_n | p ~ Bernoulli(p)          toss n, 1 for heads
Data: rows of one column, 0 or 1; default ten tosses, six of them heads.
Truth: T0, conjugacy: the posterior is Beta(alpha + heads, beta + tails).
Differs from the source in: nothing.
Raises: ZooError for rows of another width than 1, values other than 0 and 1, or alpha or beta
    that is not a positive number.
Source: Bernardo & Smith 1994, Bayesian theory, section 5.2 and appendix A; Pyro's introduction to
    SVI has this coin.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

import zoo
from zoo.data import DataSet, as_dataset
from zoo.errors import require, require_positive


class BetaBernoulli(PyroModule):
    """The program; buffers `alpha` and `beta` ()."""

    def __init__(self, alpha, beta):
        super().__init__(zoo.unique("beta_bernoulli"))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, x=None, index=None):
        p = pyro.sample("p", dist.Beta(self.alpha, self.beta))
        with zoo.datum(x, index, "toss") as rows:
            toss = None if rows is None else rows[:, 0]
            return pyro.sample("x", dist.Bernoulli(p), obs=toss)


def log_joint(model, x, p):
    """log p(x, p) of all tosses, (...) nats; x (n, 1), p (...)."""
    a, b = model.alpha, model.beta
    heads, tails = _counts(x)
    return (a + heads - 1) * p.log() + (b + tails - 1) * (1 - p).log() - _log_beta(a, b)


def log_evidence(model, x):
    """log p(x) of all tosses together in their order, () nats."""
    heads, tails = _counts(x)
    a, b = model.alpha, model.beta
    return _log_beta(a + heads, b + tails) - _log_beta(a, b)


def posterior(model, x):
    """p(p given x), a Beta with batch ()."""
    heads, tails = _counts(x)
    return dist.Beta(model.alpha + heads, model.beta + tails)


def _counts(x):
    return x.sum(), (1 - x).sum()


def _log_beta(a, b):
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


@zoo.register
def build(data=None, alpha=10.0, beta=10.0):
    """The problem; data: rows of one column, 0 or 1; alpha, beta: of the prior."""
    require_positive(alpha=alpha, beta=beta)
    data = ten_tosses() if data is None else as_dataset(data)
    require(data.width == 1, f"rows must be tosses, one column of 0 and 1, got {data.width}")
    return zoo.Problem(
        model=BetaBernoulli(alpha, beta),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "conjugacy", log_evidence, posterior),
    )


def ten_tosses():
    """Six heads, then four tails; all rows are one experiment, so that nothing is held out."""
    rows = torch.tensor([1.0] * 6 + [0.0] * 4)[:, None]
    return DataSet("ten_tosses", rows, rows, licence="facts", source="Pyro, SVI part I")

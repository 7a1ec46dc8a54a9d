"""Bernoulli latent variable model: which of many switches are on behind a binary vector?

Hidden causes that are present or absent, and whose effects on the pixels add up in logits (a
sigmoid belief network of one hidden layer) or pass a neural network.  k switches have 2^k states:
the sum over them is exact for few switches and out of reach for many, and a draw of a switch has
no gradient.

Story:
    z_n     ~ Bernoulli(b), event (k,)             switches, independent
    x_n | z ~ Bernoulli(logits = decoder(z_n)), event (d,)
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0 for k up to 16, the sum over all 2^k states; T2 beyond, bounds from below and, on
    simulated data, from above.
Differs from the source in: parameters by maximum likelihood, the prior's in logits; `hidden`
    layers of hyperbolic tangents between switches and pixels, by default none.
Raises: ZooError for a latent_dim that is no whole number from 1 to 10,000, widths below 1, or
    values other than 0 and 1.
Source: Neal 1992, Connectionist learning of belief networks; Mnih & Gregor 2014, Neural
    variational inference and learning in belief networks.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo import enumeration
from zoo.data import as_dataset
from zoo.densities import log_bernoulli
from zoo.distributions import BernoulliVector
from zoo.errors import require
from zoo.nets import check_hidden, mlp
from zoo.problem import BOUNDED

MAX_LATENT_DIM = 10_000


class BernoulliLVM(PyroModule):
    """The program; `prior_logits` (k,), `decoder` maps (..., k) to logits (..., d)."""

    def __init__(self, width, latent_dim, hidden):
        super().__init__(zoo.unique("bernoulli_lvm"))
        self.prior_logits = nn.Parameter(torch.empty(latent_dim))
        self.decoder = mlp(latent_dim, hidden, width)
        self.reset_parameters()

    def reset_parameters(self):
        """Fair switches; the decoder's layers reset themselves."""
        nn.init.zeros_(self.prior_logits)

    def forward(self, x=None, index=None):
        prior = BernoulliVector(self.prior_logits)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior)
            return pyro.sample("x", BernoulliVector(self.decoder(z)), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n, k)."""
    return log_bernoulli(z, model.prior_logits) + log_bernoulli(x, model.decoder(z))


def cross_log_joint(model, x, z):
    """log p(x_n, z_g) of every row with every state: x (n, d), z (g, k) -> (n, g)."""
    softplus = nn.functional.softplus
    b, logits = model.prior_logits, model.decoder(z)
    log_prior = z @ b - softplus(b).sum()
    return x @ logits.T - softplus(logits).sum(-1) + log_prior


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats: the sum over all states."""
    k = len(model.prior_logits)
    return enumeration.log_evidence(lambda x, z: cross_log_joint(model, x, z), x, k)


def posterior(model, x):
    """p(z given x) over the states: batch (n,), event (k,)."""
    k = len(model.prior_logits)
    return enumeration.VectorPosterior(lambda x, z: cross_log_joint(model, x, z), x, k)


def _truth(latent_dim):
    if latent_dim > enumeration.LONGEST:
        return zoo.Truth("T2", f"2^{latent_dim} states are too many to sum over; {BOUNDED.how}")
    return zoo.Truth("T0", "sum over all states", log_evidence, posterior)


@zoo.register
def build(data="digits", latent_dim=8, hidden=()):
    """The problem; data as `zoo.data.as_dataset` takes it, binary; hidden: widths of layers."""
    require(
        type(latent_dim) is int and 1 <= latent_dim <= MAX_LATENT_DIM,
        f"latent_dim must be a whole number from 1 to {MAX_LATENT_DIM:,}, got {latent_dim!r}",
    )
    check_hidden(hidden)
    data = as_dataset(data, binary=True)
    return zoo.Problem(
        model=BernoulliLVM(data.width, latent_dim, tuple(hidden)),
        data=data,
        log_joint=log_joint,
        truth=_truth(latent_dim),
        predictive_mean=lambda model, z: model.decoder(z).sigmoid(),
    )

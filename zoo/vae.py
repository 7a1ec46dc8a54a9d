"""Variational autoencoder: a curved surface of few dimensions that the data lie on.

A neural network turns a few hidden numbers into the probabilities of many pixels.  The posterior
of the hidden numbers has no closed form, so every guide leaves a gap.

Story:
    z_n     ~ Normal(0, I), event (k,)
    x_n | z ~ Bernoulli(logits = decoder(z_n)) or Normal(decoder(z_n), scale), event (d,)
Data: rows in [0, 1], binary for Bernoulli pixels; default the digits.
Truth: T1 for k of 1 or 2, the trapezoid rule on a grid with a stated error; T2 otherwise, bounds
    from below and, on simulated data, from above.
Differs from the source in: hyperbolic tangents, and Normal pixels share one learned scale.
Raises: ZooError for latent_dim below 1 or above the data's width, unknown observations, or values
    outside the likelihood's support.
Source: Kingma & Welling 2014, Auto-encoding variational Bayes, section 3 and appendix C.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.data import as_dataset, check_latent_dim
from zoo.densities import log_bernoulli
from zoo.errors import unknown
from zoo.nets import check_hidden, mlp, tensor_of
from zoo.problem import BOUNDED
from zoo.truth import GridPosterior, quadrature

OBSERVATIONS = ("bernoulli", "normal")


class VAE(PyroModule):
    """The program; `decoder` maps (..., k) to (..., d), `log_scale` () is for Normal pixels."""

    def __init__(self, width, latent_dim, hidden, observations="bernoulli"):
        super().__init__(zoo.unique("vae"))
        self.latent_dim = latent_dim
        self.decoder = mlp(latent_dim, hidden, width)
        self.log_scale = nn.Parameter(torch.zeros(())) if observations == "normal" else None

    def reset_parameters(self):
        """Unit noise; the decoder's layers reset themselves."""
        if self.log_scale is not None:
            nn.init.zeros_(self.log_scale)

    def likelihood(self, z):
        """p(x given z), event (d,)."""
        output = self.decoder(z)
        if self.log_scale is None:
            return dist.Bernoulli(logits=output).to_event(1)
        return dist.Normal(output, self.log_scale.exp()).to_event(1)

    def forward(self, x=None, index=None):
        zeros = tensor_of(self).new_zeros(self.latent_dim)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(zeros, 1).to_event(1))
            return pyro.sample("x", self.likelihood(z), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n, k)."""
    output = model.decoder(z)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
    if model.log_scale is None:
        return log_prior + log_bernoulli(x, output)
    sigma = model.log_scale.exp()
    squares = ((x - output) / sigma) ** 2
    return log_prior - 0.5 * (squares + math.log(2 * math.pi) + 2 * sigma.log()).sum(-1)


def cross_log_likelihood(model, x, z):
    """log p(x_n given z_g) of every row at every point: x (n, d), z (g, k) -> (n, g)."""
    output = model.decoder(z)
    if model.log_scale is None:
        return x @ output.T - nn.functional.softplus(output).sum(-1)
    squares = x.square().sum(-1)[:, None] - 2 * x @ output.T + output.square().sum(-1)
    return -0.5 * squares / (2 * model.log_scale).exp() - x.shape[-1] * (
        model.log_scale + 0.5 * math.log(2 * math.pi)
    )


def _log_likelihood(model):
    return lambda x, z: cross_log_likelihood(model, x, z)


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats, by quadrature."""
    return quadrature(_log_likelihood(model), x, model.latent_dim)[0]


def evidence_error(model, x):
    """Stated error of `log_evidence`, (n,) nats."""
    return quadrature(_log_likelihood(model), x, model.latent_dim)[1]


def posterior(model, x):
    """p(z given x) on a grid: batch (n,), event (k,)."""
    return GridPosterior(_log_likelihood(model), x, model.latent_dim)


def _truth(latent_dim):
    if latent_dim > 2:
        return BOUNDED
    how = "trapezoid rule on a grid, refined until its stated error is below 0.01 nats"
    return zoo.Truth("T1", how, log_evidence, posterior, evidence_error)


@zoo.register
def build(data="digits", latent_dim=2, hidden=(100, 100), observations="bernoulli"):
    """The problem; data as `zoo.data.as_dataset` takes it; hidden: widths of decoder layers."""
    if observations not in OBSERVATIONS:
        raise unknown("observations", observations, OBSERVATIONS)
    data = as_dataset(data, binary=observations == "bernoulli")
    check_latent_dim(latent_dim, data)
    check_hidden(hidden)
    return zoo.Problem(
        model=VAE(data.width, latent_dim, tuple(hidden), observations),
        data=data,
        log_joint=log_joint,
        truth=_truth(latent_dim),
        predictive_mean=lambda model, z: model.likelihood(z).mean,
    )

"""Autoencoder: a few numbers for a datum, from which a network restores it as well as it can.

The deterministic baseline of the latent variable models: no prior says which hidden numbers are
likely, so that it has no draws and no evidence, and only its reconstructions and the places of the
data in its hidden space can be compared.  Fit it with the guide `amortized`: the encoder gives a
point, since a distribution would spread without end.

Story:
    z_n         any vector of real numbers, event (k,): a flat, improper prior that scores 0
    x_n | z_n ~ Bernoulli(logits = decoder(z_n)) or Normal(decoder(z_n), scale), event (d,)
Data: rows in [0, 1], binary for Bernoulli pixels; default the digits.
Truth: T4, the mass of the prior is infinite, so that there is no evidence and no posterior to know.
Differs from the source in: the error of the reconstruction is the Bernoulli cross-entropy, or
    squares under one learned scale; hyperbolic tangents, and all layers are trained together from a
    random start.
Raises: ZooError for latent_dim below 1 or above the data's width, unknown observations, or values
    outside the likelihood's support.
Source: Hinton & Salakhutdinov 2006, Reducing the dimensionality of data with neural networks;
    Bourlard & Kamp 1988, Auto-association by multilayer perceptrons, for the linear one, which is
    principal component analysis.
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
from zoo.distributions import Flat
from zoo.errors import unknown
from zoo.nets import check_hidden, mlp, tensor_of

OBSERVATIONS = ("bernoulli", "normal")


class Autoencoder(PyroModule):
    """The program; `decoder` maps (..., k) to (..., d), `log_scale` () is for Normal pixels."""

    def __init__(self, width, latent_dim, hidden, observations="bernoulli"):
        super().__init__(zoo.unique("autoencoder"))
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
        like = tensor_of(self)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", Flat(self.latent_dim, like))
            return pyro.sample("x", self.likelihood(z), obs=rows)


def log_joint(model, x, z):
    """log p(x given z) of every row, (n,) nats, to which the prior adds nothing."""
    output = model.decoder(z)
    if model.log_scale is None:
        return log_bernoulli(x, output)
    sigma = model.log_scale.exp()
    squares = ((x - output) / sigma) ** 2
    return -0.5 * (squares + math.log(2 * math.pi) + 2 * sigma.log()).sum(-1)


@zoo.register
def build(data="digits", latent_dim=2, hidden=(100, 100), observations="bernoulli"):
    """The problem; data as `zoo.data.as_dataset` takes it; hidden: widths of decoder layers."""
    if observations not in OBSERVATIONS:
        raise unknown("observations", observations, OBSERVATIONS)
    data = as_dataset(data, binary=observations == "bernoulli")
    check_latent_dim(latent_dim, data)
    check_hidden(hidden)
    return zoo.Problem(
        model=Autoencoder(data.width, latent_dim, tuple(hidden), observations),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T4", "the prior is flat and improper: there is no evidence"),
        predictive_mean=lambda model, z: model.likelihood(z).mean,
    )

"""Hierarchical VAE: two layers of hidden numbers, of which the upper ones draw the lower ones.

What no single layer of independent normals says well, that some combinations of hidden numbers are
common and others rare, the upper layer learns.  Its guide has to go the same way, from the top
down, or it loses what ties the layers together.

Story:
    z2_n      ~ Normal(0, I), event (k2,)
    z1_n | z2 ~ Normal(loc(z2_n), scale(z2_n)), event (k1,), both by one network
    x_n | z1  ~ Bernoulli(logits = decoder(z1_n)) or Normal(decoder(z1_n), scale), event (d,)
Data: rows in [0, 1], binary for Bernoulli pixels; default the digits.
Truth: T2, bounds from below and, on simulated data, from above.
Differs from the source in: two layers, hyperbolic tangents, no batch normalization, and Normal
    pixels share one learned scale.
Raises: ZooError for latent_dim that is no pair of whole numbers from 1 to the data's width, unknown
    observations, or values outside the likelihood's support.
Source: Rezende, Mohamed & Wierstra 2014, Stochastic backpropagation and approximate inference in
    deep generative models, section 2; Soenderby et al. 2016, Ladder variational autoencoders,
    eq. 1-3.
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
from zoo.errors import require, unknown
from zoo.nets import check_hidden, mlp, tensor_of
from zoo.problem import BOUNDED

OBSERVATIONS = ("bernoulli", "normal")


class HierarchicalVAE(PyroModule):
    """The program; `lower` maps (..., k2) to (..., 2 k1), `decoder` (..., k1) to (..., d).

    `log_scale` () is for Normal pixels.
    """

    def __init__(self, width, latent_dim, hidden, observations="bernoulli"):
        super().__init__(zoo.unique("hierarchical_vae"))
        k1, self.top_dim = latent_dim
        self.lower = mlp(self.top_dim, hidden, 2 * k1)
        self.decoder = mlp(k1, hidden, width)
        self.log_scale = nn.Parameter(torch.zeros(())) if observations == "normal" else None

    def reset_parameters(self):
        """Unit noise; the networks' layers reset themselves."""
        if self.log_scale is not None:
            nn.init.zeros_(self.log_scale)

    def likelihood(self, z1):
        """p(x given z1), event (d,)."""
        output = self.decoder(z1)
        if self.log_scale is None:
            return dist.Bernoulli(logits=output).to_event(1)
        return dist.Normal(output, self.log_scale.exp()).to_event(1)

    def forward(self, x=None, index=None):
        zeros = tensor_of(self).new_zeros(self.top_dim)
        with zoo.datum(x, index) as rows:
            z2 = pyro.sample("z2", dist.Normal(zeros, 1).to_event(1))
            loc, log_scale = self.lower(z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            return pyro.sample("x", self.likelihood(z1), obs=rows)


def log_joint(model, x, z2, z1):
    """log p(x, z2, z1) of every row, (n,) nats; x (n, d), z2 (n, k2), z1 (n, k1)."""
    mu, log_sigma = model.lower(z2).chunk(2, -1)
    log_top = -0.5 * (z2**2 + math.log(2 * math.pi)).sum(-1)
    residual = (z1 - mu) / log_sigma.exp()
    log_lower = -0.5 * (residual**2 + math.log(2 * math.pi) + 2 * log_sigma).sum(-1)
    output = model.decoder(z1)
    if model.log_scale is None:
        return log_top + log_lower + log_bernoulli(x, output)
    squares = ((x - output) / model.log_scale.exp()) ** 2
    constant = math.log(2 * math.pi) + 2 * model.log_scale
    return log_top + log_lower - 0.5 * (squares + constant).sum(-1)


@zoo.register
def build(data="digits", latent_dim=(2, 2), hidden=(100, 100), observations="bernoulli"):
    """The problem; data as `zoo.data.as_dataset` takes it.

    latent_dim: (k1, k2), the numbers next to the pixels and those at the top; hidden: widths of the
    layers of both networks.
    """
    if observations not in OBSERVATIONS:
        raise unknown("observations", observations, OBSERVATIONS)
    data = as_dataset(data, binary=observations == "bernoulli")
    require(
        isinstance(latent_dim, list | tuple) and len(latent_dim) == 2,
        f"latent_dim must be a pair of whole numbers, such as [20, 5], got {latent_dim!r}",
    )
    for dim in latent_dim:
        check_latent_dim(dim, data)
    check_hidden(hidden)
    return zoo.Problem(
        model=HierarchicalVAE(data.width, tuple(latent_dim), tuple(hidden), observations),
        data=data,
        log_joint=log_joint,
        truth=BOUNDED,
        predictive_mean=lambda model, z2, z1: model.likelihood(z1).mean,
    )

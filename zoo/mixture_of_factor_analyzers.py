"""Mixture of factor analyzers: a curved surface pieced together from K flat ones.

Which of K clouds a point comes from, and where on that cloud's own few directions it lies: groups
and dimensions are found together.  A discrete and a continuous latent hang on each other: the same
z means another place under each y.

Story:
    y_n        ~ Categorical(weights)                 component of datum n, one of K
    z_n        ~ Normal(0, I), event (k,)             place on its plane
    x_n | y, z ~ Normal(W_y z + mu_y, scale), event (d,)   in the units of the data
Data: rows of real numbers; default the digits, pixels from 0 (white) to 1 (black).
Truth: T0, the sum over K components of their marginal normals, each by the Woodbury identity; with
    it `component_posterior`, p(y given x), and `place_posterior`, p(z given x, y).
Differs from the source in: noise scales, shared by the components, are at least 0.001, since a
    constant column would make the likelihood unbounded; parameters by gradients, not by EM.
Raises: ZooError for num_components < 1, or latent_dim below 1 or above the data's width.
Source: Ghahramani & Hinton 1996, The EM algorithm for mixtures of factor analyzers, eq. 8-10.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.data import as_dataset, check_latent_dim
from zoo.errors import require_count
from zoo.starts import Starts

MIN_SCALE = 1e-3


class MixtureOfFactorAnalyzers(PyroModule):
    """The program; `weight_logits` (K,), `weight` (K, d, k), `loc` (K, d), `log_scale` (d,)."""

    def __init__(self, rows, num_components, latent_dim):
        super().__init__(zoo.unique("mixture_of_factor_analyzers"))
        width, self.starts = rows.shape[-1], Starts(rows)
        self.weight_logits = nn.Parameter(torch.empty(num_components))
        self.weight = nn.Parameter(torch.empty(num_components, width, latent_dim))
        self.loc = nn.Parameter(torch.empty(num_components, width))
        self.log_scale = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self):
        """Equal weights; means at random rows; small random directions; noise as wide as the data.

        A narrower start, such as the columns' own scales, would be so steep that the first steps
        go wrong.
        """
        with torch.no_grad():
            self.weight_logits.zero_()
            typical = self.starts.spread.square().mean().sqrt().clamp(min=MIN_SCALE)
            self.weight.normal_(std=0.1).mul_(typical)
            self.loc.copy_(self.starts.draw(len(self.loc)))
            self.log_scale.copy_(typical.log().expand_as(self.log_scale))

    def scale(self):
        """Standard deviations of the noise, (d,)."""
        return MIN_SCALE + self.log_scale.exp()

    def mean(self, y, z):
        """W_y z + mu_y, (..., d); y (...) and z (..., k), whose batches broadcast."""
        # By einsum a value of y for all rows, as under enumeration, is one matrix product.
        return torch.einsum("...dk,...k->...d", self.weight[y], z) + self.loc[y]

    def forward(self, x=None, index=None):
        weight_logits, scale = self.weight_logits, self.scale()
        prior = dist.Normal(scale.new_zeros(self.weight.shape[-1]), 1).to_event(1)
        with zoo.datum(x, index) as rows:
            y = pyro.sample("y", dist.Categorical(logits=weight_logits))
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(self.mean(y, z), scale).to_event(1), obs=rows)


def log_joint(model, x, y, z):
    """log p(x, y, z) of every row, (n,) nats; x (n, d), y (n,), z (n, k)."""
    pi, Lambda, mu = model.weight_logits.softmax(-1)[y], model.weight[y], model.loc[y]
    sigma = model.scale()
    residual = (x - (Lambda * z[..., None, :]).sum(-1) - mu) / sigma
    log_prior = pi.log() - 0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
    return log_prior - 0.5 * (residual**2 + math.log(2 * math.pi)).sum(-1) - sigma.log().sum()


def component_log_joint(model, x):
    """log p(x, y = k) of every row and component: (n, K), z integrated out.

    Under each component x is Normal(mu, W W' + V), whose density needs k x k matrices alone.
    """
    variance = model.scale().square()
    normals = (
        dist.LowRankMultivariateNormal(loc, weight, variance)
        for loc, weight in zip(model.loc, model.weight, strict=True)
    )
    each = [normal.log_prob(x) for normal in normals]
    return torch.stack(each, -1) + model.weight_logits.log_softmax(-1)


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats; the sum over components."""
    return component_log_joint(model, x).logsumexp(-1)


def component_posterior(model, x):
    """p(y given x), Categorical with batch (n,)."""
    return dist.Categorical(logits=component_log_joint(model, x))


def place_posterior(model, x, y):
    """p(z given x, y) of rows x (n, d) and components y (n,): MultivariateNormal, event (k,)."""
    weight, variance = model.weight[y], model.scale().square()
    scaled = weight / variance[:, None]
    precision = weight.mT @ scaled + torch.eye(weight.shape[-1]).to(scaled)
    projected = ((x - model.loc[y])[..., None] * scaled).sum(-2)
    loc = torch.linalg.solve(precision, projected)
    return dist.MultivariateNormal(loc, precision_matrix=precision)


@zoo.register
def build(data="digits", num_components=5, latent_dim=2):
    """The problem; data as `zoo.data.as_dataset` takes it."""
    data = as_dataset(data)
    require_count(num_components=num_components)
    check_latent_dim(latent_dim, data)
    how = "sum over the components of marginal normals, Woodbury identity"
    return zoo.Problem(
        model=MixtureOfFactorAnalyzers(data.train, num_components, latent_dim),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", how, log_evidence),
        predictive_mean=lambda model, y, z: model.mean(y, z),
    )

"""Gaussian latent variable model: which few directions explain a cloud of points?

Probabilistic PCA where the noise is isotropic, factor analysis where every column has its own.
The likelihood is invariant to rotations of the latent space; only a guide with a diagonal
covariance prefers the principal axes.

Story:
    z_n     ~ Normal(0, I), event (k,)
    x_n | z ~ Normal(W z_n + mu, scale), event (d,), in the units of the data
Data: rows of real numbers; default the digits, pixels from 0 (white) to 1 (black).
Truth: T0, the marginal normal by the Woodbury identity, O(d k^2) a model and O(d k) a datum.
Differs from the source in: noise scales are at least 0.001, since a constant column would make
    the likelihood of factor analysis unbounded.
Raises: ZooError for latent_dim below 1 or above the data's width, or an unknown noise.
Source: Tipping & Bishop 1999, Probabilistic principal component analysis, eq. 4-8;
    Bishop 2006, section 12.2.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.data import as_dataset, check_latent_dim
from zoo.errors import require, unknown

MIN_SCALE = 1e-3


class GaussianLVM(PyroModule):
    """The program; `weight` (d, k), `loc` (d,), `log_scale` () or (d,)."""

    def __init__(self, width, latent_dim, noise="isotropic"):
        super().__init__(zoo.unique("gaussian_lvm"))
        self.weight = nn.Parameter(torch.empty(width, latent_dim))
        self.loc = nn.Parameter(torch.empty(width))
        self.log_scale = nn.Parameter(torch.empty(() if noise == "isotropic" else (width,)))
        self.reset_parameters()

    def reset_parameters(self):
        """Small random directions, zero mean, unit noise."""
        with torch.no_grad():
            self.weight.normal_(std=0.1)
            self.loc.zero_()
            self.log_scale.zero_()

    def scale(self):
        """Standard deviation of the noise, () or (d,)."""
        return MIN_SCALE + self.log_scale.exp()

    def forward(self, x=None, index=None):
        weight, loc, scale = self.weight, self.loc, self.scale()
        prior = dist.Normal(weight.new_zeros(weight.shape[-1]), 1).to_event(1)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(z @ weight.T + loc, scale).to_event(1), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n, k)."""
    d, k = model.weight.shape
    sigma = model.scale().expand(d)
    residual = (x - torch.einsum("dk,...k->...d", model.weight, z) - model.loc) / sigma
    log_prior = -0.5 * (z**2).sum(-1) - 0.5 * k * math.log(2 * math.pi)
    return log_prior - 0.5 * (residual**2 + math.log(2 * math.pi)).sum(-1) - sigma.log().sum()


def _posterior_parts(model, x):
    """Noise variance (d,), posterior precision M (k, k), W' noise^-1 (x - loc) (n, k)."""
    variance = model.scale().square().expand(model.weight.shape[0])
    scaled = model.weight / variance[:, None]
    precision = model.weight.T @ scaled + torch.eye(model.weight.shape[1]).to(scaled)
    return variance, precision, (x - model.loc) @ scaled


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats; Woodbury identity, no d x d matrix is inverted.

    log det(W W' + V) = log det M + log det V; the quadratic form loses |L^-1 W' V^-1 r|^2, where
    L L' = M and r = x - loc.
    """
    variance, precision, projected = _posterior_parts(model, x)
    lower = torch.linalg.cholesky(precision)
    inner = torch.linalg.solve_triangular(lower, projected.T, upper=False).square().sum(0)
    quadratic = ((x - model.loc).square() / variance).sum(-1) - inner
    log_det = 2 * lower.diagonal().log().sum() + variance.log().sum()
    return -0.5 * (quadratic + log_det + len(variance) * math.log(2 * math.pi))


def posterior(model, x):
    """p(z given x): MultivariateNormal, batch (n,), event (k,); one covariance for all rows."""
    _, precision, projected = _posterior_parts(model, x)
    loc = torch.linalg.solve(precision, projected.T).T
    return dist.MultivariateNormal(loc, precision_matrix=precision)


def maximum_likelihood(model, x):
    """Set an isotropic model's parameters to the closed-form maximum for the rows x (n, d).

    Tipping & Bishop 1999, eq. 7-8: the leading eigenvectors of the covariance, shrunk by the
    noise, whose variance is the mean of the other eigenvalues.
    """
    d, k = model.weight.shape
    require(model.log_scale.dim() == 0, "the closed form is for isotropic noise")
    require(k < d, f"the closed form needs latent_dim below {d}, got {k}")
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
    variance = eigenvalues[:-k].mean()
    stretch = (eigenvalues[-k:] - variance).clamp(min=0).sqrt()
    with torch.no_grad():
        model.weight.copy_(vectors[:, -k:] * stretch)
        model.loc.copy_(x.double().mean(0))
        model.log_scale.copy_((variance.sqrt() - MIN_SCALE).clamp(min=1e-9).log())
    return model


@zoo.register
def build(data="digits", latent_dim=2, noise="isotropic"):
    """The problem; data as `zoo.data.as_dataset` takes it; noise "isotropic" or "diagonal"."""
    data = as_dataset(data)
    check_latent_dim(latent_dim, data)
    if noise not in ("isotropic", "diagonal"):
        raise unknown("noise", noise, ["isotropic", "diagonal"])
    return zoo.Problem(
        model=GaussianLVM(data.width, latent_dim, noise),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "marginal normal, Woodbury identity", log_evidence, posterior),
        predictive_mean=lambda model, z: z @ model.weight.T + model.loc,
    )

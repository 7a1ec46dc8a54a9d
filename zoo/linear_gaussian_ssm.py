"""Linear Gaussian state space model: a few hidden numbers that move, seen through noise.

Tracking: where was the object at each moment, given all of its noisy positions?  The model behind
the Kalman filter.  The posterior is normal, and successive states are correlated in it, so that a
diagonal guide has a gap that a full-rank one has not.  Trained with one, the model settles for
states that hang together less, since for those the gap is smaller.

Story:
    z_n1            ~ Normal(0, I), event (k,)          state of datum n at the first of T steps
    z_nt | z_n(t-1) ~ Normal(A z_n(t-1), I)             state at step t
    x_nt | z_nt     ~ Normal(C z_nt + b, scale)         the step's w columns, in the data's units
    One site z holds all states side by side, event (T k,).
Data: rows of real numbers, T steps of w columns side by side; default the digits, pixels from 0
    (white) to 1 (black): eight rows of eight pixels.
Truth: T0, the evidence by the Kalman filter, the posterior from its block tridiagonal precision.
Differs from the source in: the states' noise has covariance I, which costs no generality, since
    A, C and the states can be rescaled; so has the first state's, which does cost some.  Noise
    scales are at least 0.001, since a constant column would make the likelihood unbounded.
Raises: ZooError for steps below 2 or that do not divide the columns, or latent_dim below 1 or
    above the data's width.
Source: Kalman 1960, A new approach to linear filtering and prediction problems; Roweis &
    Ghahramani 1999, A unifying review of linear Gaussian models; Turner & Sahani 2011, Two problems
    with variational expectation maximisation for time-series models, for what the gap does.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.chains import GaussianChain, check_steps
from zoo.data import as_dataset, check_latent_dim

MIN_SCALE = 1e-3


class LinearGaussianSSM(PyroModule):
    """The program; `transition` A (k, k), `weight` C (w, k), `loc` b (w,), `log_scale` (w,)."""

    def __init__(self, width, steps, latent_dim):
        super().__init__(zoo.unique("linear_gaussian_ssm"))
        self.steps = steps
        self.transition = nn.Parameter(torch.empty(latent_dim, latent_dim))
        self.weight = nn.Parameter(torch.empty(width // steps, latent_dim))
        self.loc = nn.Parameter(torch.empty(width // steps))
        self.log_scale = nn.Parameter(torch.empty(width // steps))
        self.reset_parameters()

    def reset_parameters(self):
        """States that halve at each step, about; small random directions; unit noise."""
        with torch.no_grad():
            self.transition.copy_(0.5 * torch.eye(len(self.transition)))
            self.transition.add_(0.1 * torch.randn_like(self.transition))
            self.weight.normal_(std=0.1)
            self.loc.zero_()
            self.log_scale.zero_()

    def scale(self):
        """Standard deviations of the noise, (w,)."""
        return MIN_SCALE + self.log_scale.exp()

    def mean(self, z):
        """E[x given z]: states (..., T k) -> (..., d)."""
        states = z.unflatten(-1, (self.steps, -1))
        return (states @ self.weight.T + self.loc).flatten(-2)

    def forward(self, x=None, index=None):
        prior, scale = GaussianChain(self.transition, self.steps), self.scale().repeat(self.steps)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(self.mean(z), scale).to_event(1), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n, T k)."""
    z, x = (value.unflatten(-1, (model.steps, -1)) for value in (z, x))
    sigma, log_2pi = model.scale(), math.log(2 * math.pi)
    total = -0.5 * (z[..., 0, :] ** 2 + log_2pi).sum(-1)
    for t in range(model.steps):
        if t > 0:
            moved = torch.einsum("ij,...j->...i", model.transition, z[..., t - 1, :])
            total = total - 0.5 * ((z[..., t, :] - moved) ** 2 + log_2pi).sum(-1)
        seen = torch.einsum("wk,...k->...w", model.weight, z[..., t, :]) + model.loc
        residual = (x[..., t, :] - seen) / sigma
        total = total - (0.5 * (residual**2 + log_2pi) + sigma.log()).sum(-1)
    return total


def _in_double(model, x):
    """A (k, k), C (w, k), noise variance (w,), and x less its mean (n, T, w), all in float64.

    Of noise as small as 0.001, float32 would leave the filter few digits.
    """
    residual = x.double().unflatten(-1, (model.steps, -1)) - model.loc.double()
    variance = model.scale().double().square()
    return model.transition.double(), model.weight.double(), variance, residual


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats, by the Kalman filter; covariances are shared by all rows.

    mean (n, k) and covariance (k, k): of z_t given x_1 ... x_(t-1), then given x_t too, by
    Joseph's form of the update, which stays positive definite.
    """
    transition, weight, variance, residual = _in_double(model, x)
    identity = torch.eye(len(transition)).to(transition)
    mean, covariance, total = residual.new_zeros(len(x), len(transition)), identity, 0.0
    for y in residual.unbind(1):
        seen = weight @ covariance @ weight.T + variance.diag()
        lower, surprise = torch.linalg.cholesky(seen), (y - mean @ weight.T).T
        scaled = torch.linalg.solve_triangular(lower, surprise, upper=False)
        total = total - 0.5 * (scaled.square().sum(0) + len(seen) * math.log(2 * math.pi))
        total = total - lower.diagonal().log().sum()
        gain = torch.cholesky_solve(weight @ covariance, lower).T
        kept = identity - gain @ weight
        updated = kept @ covariance @ kept.T + gain * variance @ gain.T
        mean = (mean + (gain @ surprise).T) @ transition.T
        covariance = transition @ updated @ transition.T + identity
    return total.to(x.dtype)


def posterior(model, x):
    """p(z given x): MultivariateNormal, batch (n,), event (T k,); one covariance for all rows.

    Its precision has C' R^-1 C + I + A' A on the diagonal (the last without A' A), -A below it.
    """
    transition, weight, variance, residual = _in_double(model, x)
    scaled, count = weight / variance[:, None], model.steps
    every, later = torch.eye(count).to(weight), torch.ones(count - 1).to(weight)
    own = weight.T @ scaled + torch.eye(len(transition)).to(weight)
    below = torch.kron(torch.diag(later, -1), transition)
    leaving = torch.kron(torch.diag(torch.cat([later, 0 * later[:1]])), transition.T @ transition)
    lower = torch.linalg.cholesky(torch.kron(every, own) + leaving - below - below.T)
    loc = torch.cholesky_solve((residual @ scaled).flatten(1).T, lower).T
    scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(lower))
    return dist.MultivariateNormal(loc.to(x.dtype), scale_tril=scale_tril.to(x.dtype))


@zoo.register
def build(data="digits", steps=8, latent_dim=2):
    """The problem; data as `zoo.data.as_dataset` takes it; steps: T, latent_dim: k of a state."""
    data = as_dataset(data)
    check_steps(steps, data)
    check_latent_dim(latent_dim, data)
    return zoo.Problem(
        model=LinearGaussianSSM(data.width, steps, latent_dim),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "Kalman filter", log_evidence, posterior),
        predictive_mean=lambda model, z: model.mean(z),
    )

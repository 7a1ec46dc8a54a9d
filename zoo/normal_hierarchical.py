"""Normal hierarchy: many noisy measurements around a center that is itself unknown.

Everything is linear and normal, so every answer has a closed form.  It is where amortization can
be judged exactly: the best q(z_n) is a linear function of x_n, which an encoder of degree one has
and one shared q(z) has not.

Story:
    theta         ~ Normal(0, 1)                      center, shared by all data
    z_n           ~ Normal(0, 1)                      standardized deviation of datum n
    x_n | theta, z ~ Normal(theta + tau z_n, sigma)   measurement
Data: rows of one column; default 10,000 simulated measurements, shifted and stretched so that
    their mean is 0.2 and their variance 7.3336 exactly (divisor n).
Truth: T0, a normal with covariance (tau^2 + sigma^2) I + 11'.
Differs from the source in: the data, of the same size and variance but simulated anew.
Raises: ZooError for rows of another width than 1, or tau or sigma that is not a positive number.
Source: Margossian & Blei 2024, Amortized variational inference: when and why?, section 4.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

import zoo
from zoo.data import DataSet, as_dataset
from zoo.errors import require, require_positive

NUM_DATA = 10_000
MEAN, VARIANCE = 0.2, 7.3336


class NormalHierarchical(PyroModule):
    """The program; buffers `tau` and `sigma` ()."""

    def __init__(self, tau, sigma):
        super().__init__(zoo.unique("normal_hierarchical"))
        self.register_buffer("tau", torch.tensor(float(tau)))
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def forward(self, x=None, index=None):
        standard = dist.Normal(torch.zeros_like(self.tau), 1)
        theta = pyro.sample("theta", standard)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", standard)
            observed = dist.Normal(theta + self.tau * z, self.sigma)
            return pyro.sample("x", observed, obs=None if rows is None else rows[:, 0])


def log_joint(model, x, theta, z):
    """log p(x, theta, z) of all data, (...) nats; x (n, 1), theta (...), z (..., n)."""
    tau, sigma, n = model.tau, model.sigma, x.shape[0]
    residual = (x[:, 0] - theta[..., None] - tau * z) / sigma
    squares = theta**2 + (z**2).sum(-1) + (residual**2).sum(-1)
    return -0.5 * (squares + (2 * n + 1) * math.log(2 * math.pi)) - n * sigma.log()


def log_evidence(model, x):
    """log p(x) of all data together, () nats.

    With v = tau^2 + sigma^2, det(v I + 11') = v^n (1 + n/v), and the inverse takes
    (sum x)^2 / (v (v + n)) off the quadratic form.
    """
    v, n, y = _marginal_variance(model), len(x), x[:, 0].double()
    quadratic = (y.square().sum() - y.sum() ** 2 / (v + n)) / v
    log_det = n * v.log() + (n / v).log1p()
    return (-0.5 * (quadratic + log_det + n * math.log(2 * math.pi))).to(x.dtype)


def posterior(model, x):
    """p(theta given x), a Normal with batch (): precision 1 + n/v."""
    v, n = _marginal_variance(model), len(x)
    loc, scale = x[:, 0].double().sum() / (v + n), (1 + n / v) ** -0.5
    return dist.Normal(loc.to(x.dtype), scale.to(x.dtype))


def local_posterior(model, x, theta):
    """p(z given x and theta), a Normal with batch (..., n); x (n, 1), theta (...).

    With p(theta given x) it is the posterior of everything.
    """
    v = _marginal_variance(model)
    loc = model.tau / v * (x[:, 0] - theta[..., None])
    return dist.Normal(loc.to(x.dtype), (model.sigma / v.sqrt()).to(x.dtype))


def _marginal_variance(model):
    """Variance of a datum given theta, () in float64."""
    return model.tau.double() ** 2 + model.sigma.double() ** 2


@zoo.register
def build(data=None, tau=1.155, sigma=2.43):
    """The problem; data: rows of one column; tau, sigma: spread of the deviations, of the noise."""
    require_positive(tau=tau, sigma=sigma)
    data = measurements() if data is None else as_dataset(data)
    require(data.width == 1, f"rows must be measurements, one column, got {data.width}")
    return zoo.Problem(
        model=NormalHierarchical(tau, sigma),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "one normal over all data", log_evidence, posterior),
    )


def measurements():
    """The simulated data; all rows are one experiment, so that nothing is held out."""
    y = np.random.RandomState(0).normal(size=NUM_DATA)
    y = MEAN + (y - y.mean()) / y.std() * math.sqrt(VARIANCE)
    rows = torch.tensor(y, dtype=torch.float32)[:, None]
    return DataSet("measurements", rows, rows, licence="MIT", source="simulated, RandomState(0)")

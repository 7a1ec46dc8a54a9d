"""Eight schools: how much does coaching raise test scores, in eight schools that differ somewhat?

Every school ran its own experiment, whose estimates are noisy and overlap: are the effects one
common effect, eight effects, or in between?  How much they spread is itself uncertain.  Written
with the effects themselves (centered), the posterior is a funnel that narrows as the spread goes
to zero, which no normal guide fits; written with standardized effects it is nearly normal.

Story:
    mu            ~ Normal(0, 5)               mean effect over schools, points
    tau           ~ HalfCauchy(5)              spread of the effects between schools, points
    theta_n       ~ Normal(mu, tau)            effect in school n, centered; or, non-centered,
    theta_raw_n   ~ Normal(0, 1),  theta_n = mu + tau theta_raw_n
    x_n | theta_n ~ Normal(theta_n, scale_n)   estimated effect, its standard error known
Data: rows (estimated effect, standard error) in points of the SAT; default Rubin's eight schools.
Truth: T3, 10,000 draws by NUTS in zoo/references.  The evidence is known besides: theta and mu
    integrate out in closed form, and what is left is an integral over tau alone.
Differs from the source in: proper priors, those of Stan's manual; the source's are flat.  Without
    data the program draws one school whose standard error is 10.
Raises: ZooError for an unknown parametrization, rows of another width than 2, or a standard error
    that is not positive.
Source: Rubin 1981, Estimation in parallel randomized experiments, table 1 (data); Gelman et al.
    2013, Bayesian data analysis, section 5.5; priors and the two forms as in Stan's users' guide
    and posteriordb; Betancourt & Girolami 2015, Hamiltonian Monte Carlo for hierarchical models.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

import zoo
from zoo.data import DataSet, as_dataset
from zoo.errors import require, unknown

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
STANDARD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
PARAMETRIZATIONS = ("centered", "non_centered")
NODES = 400  # of the quadrature over tau


class EightSchools(PyroModule):
    """The program; buffers `mu_scale` and `tau_scale` (), the scales of the priors."""

    def __init__(self, centered):
        super().__init__(zoo.unique("eight_schools"))
        self.centered = centered
        self.register_buffer("mu_scale", torch.tensor(5.0))
        self.register_buffer("tau_scale", torch.tensor(5.0))

    def forward(self, x=None, index=None):
        zero = torch.zeros_like(self.mu_scale)
        mu = pyro.sample("mu", dist.Normal(zero, self.mu_scale))
        tau = pyro.sample("tau", dist.HalfCauchy(self.tau_scale))
        with zoo.datum(x, index, "school") as rows:
            if self.centered:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("theta_raw", dist.Normal(zero, 1))
            scale = zero + 10 if rows is None else rows[:, 1]
            effect = None if rows is None else rows[:, 0]
            return pyro.sample("x", dist.Normal(theta, scale), obs=effect)


def log_joint(model, x, mu, tau, theta):
    """log p(x, mu, tau, theta) of all schools, (...) nats, centered; x (n, 2), theta (..., n)."""
    y, sigma = x.unbind(-1)
    log_priors = _log_normal(mu / model.mu_scale) - model.mu_scale.log()
    log_priors = log_priors + math.log(2 / math.pi) - model.tau_scale.log()
    log_priors = log_priors - (1 + (tau / model.tau_scale) ** 2).log()
    m, t = mu[..., None], tau[..., None]
    log_effects = _log_normal((theta - m) / t) - t.log()
    log_likelihood = _log_normal((y - theta) / sigma) - sigma.log()
    return log_priors + (log_effects + log_likelihood).sum(-1)


def log_joint_non_centered(model, x, mu, tau, theta_raw):
    """The same of the standardized effects: the change of variables adds n log tau."""
    theta = mu[..., None] + tau[..., None] * theta_raw
    return log_joint(model, x, mu, tau, theta) + theta.shape[-1] * tau.log()


def effects(mu, tau, theta_raw):
    """The effects of the schools, (..., n), from the latents of the non-centered form."""
    return {"mu": mu, "tau": tau, "theta": mu[..., None] + tau[..., None] * theta_raw}


def _log_normal(standardized):
    return -0.5 * (standardized**2 + math.log(2 * math.pi))


def log_evidence(model, x):
    """log p(x) of all schools together, () nats, by quadrature over tau."""
    return _evidence(model, x, NODES).to(x.dtype)


def evidence_error(model, x):
    """Stated error of `log_evidence`, () nats: the change against the rule of half the nodes."""
    change = (_evidence(model, x, NODES) - _evidence(model, x, NODES // 2)).abs()
    value = _evidence(model, x, NODES)
    return (change + torch.finfo(x.dtype).eps * value.abs()).to(x.dtype)


def _evidence(model, x, num_nodes):
    """Gauss-Legendre in u on (0, 1), where tau = tau_scale tan(pi u / 2) makes u uniform.

    Given tau, x is normal with covariance diag(tau^2 + sigma^2) + mu_scale^2 11', whose inverse
    and determinant are of rank one.
    """
    require((x[:, 1] > 0).all(), "standard errors, the second column, must be positive")
    points, weights = (
        torch.from_numpy(a).to(x.device) for a in np.polynomial.legendre.leggauss(num_nodes)
    )
    y, sigma = x.double().unbind(-1)
    tau = model.tau_scale.double() * (math.pi / 4 * (points + 1)).tan()
    variance = tau[:, None] ** 2 + sigma**2
    prior_variance = model.mu_scale.double() ** 2
    growth = 1 + prior_variance * (1 / variance).sum(-1)
    quadratic = (y**2 / variance).sum(-1) - prior_variance * (y / variance).sum(-1) ** 2 / growth
    log_det = variance.log().sum(-1) + growth.log()
    log_density = -0.5 * (quadratic + log_det + len(x) * math.log(2 * math.pi))
    return (log_density + (weights / 2).log()).logsumexp(0)


@zoo.register
def build(parametrization="non_centered", data=None):
    """The problem; parametrization "centered" or "non_centered"; data: rows (effect, its se)."""
    if parametrization not in PARAMETRIZATIONS:
        raise unknown("parametrization", parametrization, PARAMETRIZATIONS)
    data = rubin() if data is None else as_dataset(data)
    require(data.width == 2, f"rows must be (effect, standard error), got {data.width} columns")
    positive = all((rows[:, 1] > 0).all() for rows in (data.train, data.test))
    require(positive, "standard errors, the second column, must be positive")
    centered = parametrization == "centered"
    how = "draws by NUTS that meet the written criteria; evidence by quadrature over tau"
    return zoo.Problem(
        model=EightSchools(centered),
        data=data,
        log_joint=log_joint if centered else log_joint_non_centered,
        truth=zoo.Truth("T3", how, log_evidence, evidence_error=evidence_error),
    )


def rubin():
    """Rubin's eight schools, which are all there are: nothing is held out."""
    rows = torch.tensor([EFFECTS, STANDARD_ERRORS]).T.contiguous()
    return DataSet("eight_schools", rows, rows, licence="facts", source="Rubin 1981, table 1")

"""Deep sigmoid belief network: switches behind switches behind a binary vector.

Two stochastic binary layers, of which the upper one says which switches of the lower one go
together.  The layers hang on each other in the posterior, so independent switches leave a gap,
and a draw of a switch has no gradient.

Story:
    z2_n      ~ Bernoulli(b2), event (k2,)                      upper switches, independent
    z1_n | z2 ~ Bernoulli(logits = W1 z2_n + b1), event (k1,)   lower switches
    x_n  | z1 ~ Bernoulli(logits = W0 z1_n + b0), event (d,)
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0 for k1 + k2 up to 16, the sum over all states of both layers; no posterior is stated,
    since it is one over two latents.  T2 beyond, bounds from below and, on simulated data, from
    above.
Differs from the source in: no layer of the model is autoregressive; parameters by maximum
    likelihood.
Raises: ZooError where latent_dim lists other than two whole numbers from 1 to 10,000, or for
    values other than 0 and 1.
Source: Neal 1992, Connectionist learning of belief networks; Saul, Jaakkola & Jordan 1996, Mean
    field theory for sigmoid belief networks.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo import enumeration
from zoo.data import as_dataset
from zoo.densities import log_bernoulli
from zoo.distributions import BernoulliVector, all_vectors
from zoo.errors import require
from zoo.problem import BOUNDED

MAX_LATENT_DIM = 10_000


class DeepSigmoidBeliefNet(PyroModule):
    """The program; `top_logits` (k2,), `middle` maps (..., k2) to (..., k1), `bottom` to (..., d).

    The sites are "z2", "z1" and "x".
    """

    def __init__(self, width, latent_dim):
        super().__init__(zoo.unique("deep_sigmoid_belief_net"))
        k1, k2 = latent_dim
        self.top_logits = nn.Parameter(torch.empty(k2))
        self.middle = nn.Linear(k2, k1)
        self.bottom = nn.Linear(k1, width)
        self.reset_parameters()

    def reset_parameters(self):
        """Fair upper switches; the layers reset themselves."""
        nn.init.zeros_(self.top_logits)

    def forward(self, x=None, index=None):
        prior = BernoulliVector(self.top_logits)
        with zoo.datum(x, index) as rows:
            z2 = pyro.sample("z2", prior)
            z1 = pyro.sample("z1", BernoulliVector(self.middle(z2)))
            return pyro.sample("x", BernoulliVector(self.bottom(z1)), obs=rows)


def log_joint(model, x, z2, z1):
    """log p(x, z1, z2) of every row, (n,) nats; x (n, d), z1 (n, k1), z2 (n, k2)."""
    W1, b1 = model.middle.weight, model.middle.bias
    W0, b0 = model.bottom.weight, model.bottom.bias
    l1 = torch.einsum("ij,...j->...i", W1, z2) + b1
    l0 = torch.einsum("ij,...j->...i", W0, z1) + b0
    layers = ((z2, model.top_logits), (z1, l1), (x, l0))
    return sum(log_bernoulli(v, logits) for v, logits in layers)


def log_prior(model, z1):
    """log p(z1) of lower states (g, k1), the upper ones summed out: (g,)."""
    z2 = all_vectors(len(model.top_logits), like=model.top_logits)
    logits, softplus = model.middle(z2), nn.functional.softplus
    log_top = z2 @ model.top_logits - softplus(model.top_logits).sum()
    return (z1 @ logits.T - softplus(logits).sum(-1) + log_top).logsumexp(-1)


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats: the sum over all states of both layers."""

    def cross_log_joint(x, z1):
        logits = model.bottom(z1)
        given = x @ logits.T - nn.functional.softplus(logits).sum(-1)
        return given + log_prior(model, z1)

    return enumeration.log_evidence(cross_log_joint, x, model.middle.out_features)


def _truth(latent_dim):
    if sum(latent_dim) > enumeration.LONGEST:
        states = f"2^{sum(latent_dim)} states are too many to sum over"
        return zoo.Truth("T2", f"{states}; {BOUNDED.how}")
    return zoo.Truth("T0", "sum over all states of both layers", log_evidence)


@zoo.register
def build(data="digits", latent_dim=(5, 3)):
    """The problem; data as `zoo.data.as_dataset` takes it, binary; latent_dim: (k1, k2)."""
    require(
        isinstance(latent_dim, list | tuple)
        and len(latent_dim) == 2
        and all(type(k) is int and 1 <= k <= MAX_LATENT_DIM for k in latent_dim),
        f"latent_dim must list two whole numbers from 1 to {MAX_LATENT_DIM:,}, those of lower and "
        f"upper switches, such as [6, 4], got {latent_dim!r}",
    )
    data = as_dataset(data, binary=True)
    return zoo.Problem(
        model=DeepSigmoidBeliefNet(data.width, latent_dim),
        data=data,
        log_joint=log_joint,
        truth=_truth(latent_dim),
        predictive_mean=lambda model, z2, z1: model.bottom(z1).sigmoid(),
    )

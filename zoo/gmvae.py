"""Gaussian mixture VAE: a curved surface on which the data lie in clusters.

A variational autoencoder whose hidden numbers come from a mixture of normals, so that it finds
groups and a surface together.  Which group a datum comes from is discrete, and where it lies hangs
on that, so that a guide of independent factors leaves a gap.

Story:
    y_n     ~ Categorical(1/K, ..., 1/K)          cluster of datum n, one of K
    z_n | y ~ Normal(loc_y, scale_y), event (k,)  place on the surface
    x_n | z ~ Bernoulli(logits = decoder(z_n)), event (d,)
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T1 for k of 1 or 2, the trapezoid rule over z with y summed out, on a grid with a stated
    error; with it `place_posterior`, p(z given x), and `component_posterior`, p(y given x).  T2
    otherwise: bounds, for which `collapsed` leaves z alone, with the mixture as its prior.
Differs from the source in: the prior's means and scales are parameters, not functions of a second
    hidden vector; hyperbolic tangents.
Raises: ZooError for values other than 0 and 1, num_components < 1, latent_dim below 1 or above the
    data's width, or `collapsed` that is neither true nor false.
Source: Dilokthanakul et al. 2016, Deep unsupervised clustering with Gaussian mixture variational
    autoencoders, section 3; Jiang et al. 2017, Variational deep embedding, section 3.1.
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
from zoo.distributions import BernoulliVector
from zoo.errors import require_count, require_flag
from zoo.nets import check_hidden, mlp
from zoo.problem import BOUNDED
from zoo.truth import RADIUS, GridPosterior, Prior, quadrature

SPREAD = 1.0  # of the components' means at the start, against their scales of 1
# Far apart, only those near the places where an encoder begins are ever used: 7 to 17 of 20 at 2.


class GMVAE(PyroModule):
    """The program; `loc` and `log_scale` (K, k), `decoder` maps (..., k) to (..., d)."""

    def __init__(self, width, num_components, latent_dim, hidden, collapsed=False):
        super().__init__(zoo.unique("gmvae"))
        self.collapsed = collapsed
        self.loc = nn.Parameter(torch.empty(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.empty(num_components, latent_dim))
        self.decoder = mlp(latent_dim, hidden, width)
        self.reset_parameters()

    def reset_parameters(self):
        """Components of unit scale, which overlap; the decoder's layers reset themselves."""
        with torch.no_grad():
            self.loc.normal_(std=SPREAD)
            self.log_scale.zero_()

    def sample_place(self):
        """Draw y and then z, or z alone from the mixture."""
        loc, scale = self.loc, self.log_scale.exp()
        equal = loc.new_zeros(len(loc))
        if self.collapsed:
            return pyro.sample("z", dist.MixtureOfDiagNormals(loc, scale, equal))
        y = pyro.sample("y", dist.Categorical(logits=equal))
        return pyro.sample("z", dist.Normal(loc[y], scale[y]).to_event(1))

    def forward(self, x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = self.sample_place()
            return pyro.sample("x", BernoulliVector(self.decoder(z)), obs=rows)


def log_joint(model, x, z, y=None):
    """log p(x, y, z) of every row, (n,) nats; x (n, d), y (n,), z (n, k); log p(x, z) without y."""
    each = log_prior_of_each(model, z)
    log_prior = each.logsumexp(-1) if y is None else each.gather(-1, y[..., None])[..., 0]
    return log_prior + log_bernoulli(x, model.decoder(z))


def log_prior_of_each(model, z):
    """log p(y, z) of every component: (..., k) -> (..., K)."""
    K, k = model.loc.shape
    squares = ((z[..., None, :] - model.loc) / model.log_scale.exp()) ** 2
    constant = math.log(K) + 0.5 * k * math.log(2 * math.pi)
    return -0.5 * squares.sum(-1) - model.log_scale.sum(-1) - constant


def cross_log_likelihood(model, x, z):
    """log p(x_n given z_g) of every row at every point: x (n, d), z (g, k) -> (n, g)."""
    output = model.decoder(z)
    return x @ output.T - nn.functional.softplus(output).sum(-1)


def _integrand(model, x):
    """What the rules of zoo.truth take: the mixture, in a box that holds every component."""
    reach = RADIUS * model.log_scale.exp()
    low, high = (model.loc - reach).amin(0), (model.loc + reach).amax(0)
    prior = Prior(lambda z: log_prior_of_each(model, z).logsumexp(-1), low, high)
    return (lambda x, z: cross_log_likelihood(model, x, z)), x, prior


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats, by quadrature."""
    return quadrature(*_integrand(model, x))[0]


def evidence_error(model, x):
    """Stated error of `log_evidence`, (n,) nats."""
    return quadrature(*_integrand(model, x))[1]


def place_posterior(model, x):
    """p(z given x) on a grid: batch (n,), event (k,)."""
    return GridPosterior(*_integrand(model, x))


def component_posterior(model, x):
    """p(y given x), Categorical with batch (n,): the mean of p(y given z) over p(z given x)."""
    given_place = place_posterior(model, x).expect(
        lambda z: log_prior_of_each(model, z).softmax(-1)
    )
    return dist.Categorical(probs=given_place)


def _truth(latent_dim, collapsed):
    if latent_dim > 2:
        return BOUNDED
    how = "y summed out; trapezoid rule on a grid, refined until its stated error is below 0.01"
    posterior = place_posterior if collapsed else None
    return zoo.Truth("T1", how, log_evidence, posterior, evidence_error)


@zoo.register
def build(data="digits", num_components=10, latent_dim=2, hidden=(100, 100), collapsed=False):
    """The problem; data as `zoo.data.as_dataset` takes it; hidden: widths of decoder layers."""
    data = as_dataset(data, binary=True)
    require_count(num_components=num_components)
    check_latent_dim(latent_dim, data)
    check_hidden(hidden)
    require_flag(collapsed=collapsed)
    return zoo.Problem(
        model=GMVAE(data.width, num_components, latent_dim, tuple(hidden), collapsed),
        data=data,
        log_joint=log_joint,
        truth=_truth(latent_dim, collapsed),
        predictive_mean=lambda model, z, y=None: model.decoder(z).sigmoid(),
    )

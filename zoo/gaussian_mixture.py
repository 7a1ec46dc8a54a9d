"""Gaussian mixture: which of K clouds does a point come from?

The textbook model for groups of real vectors.  The likelihood has many local maxima, and none that
is global: a component that shrinks onto one row, or onto a column that never changes, gains without
end, so that its scales need a floor.

Story:
    z_n     ~ Categorical(weights)                 component of datum n, one of K
    x_n | z ~ Normal(loc_z, scale_z), event (d,)   in the units of the data
Data: rows of real numbers; default the digits, pixels from 0 (white) to 1 (black).
Truth: T0, the sum over K components in log space.
Differs from the source in: covariances are diagonal; scales are at least `min_scale`, by default
    0.05, about a level of gray of the digits; parameters by gradients, which begin at random rows.
Raises: ZooError for num_components < 1, or a min_scale that is not positive.
Source: Bishop 2006, Pattern Recognition and Machine Learning, section 9.2.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.data import as_dataset
from zoo.errors import require_count, require_positive
from zoo.starts import Starts


class GaussianMixture(PyroModule):
    """The program; `weight_logits` (K,), `loc` (K, d), `raw_scale` (K, d)."""

    def __init__(self, rows, num_components, min_scale):
        super().__init__(zoo.unique("gaussian_mixture"))
        self.min_scale, self.starts = min_scale, Starts(rows)
        self.weight_logits = nn.Parameter(torch.empty(num_components))
        self.loc = nn.Parameter(torch.empty(num_components, rows.shape[-1]))
        self.raw_scale = nn.Parameter(torch.empty(num_components, rows.shape[-1]))
        self.reset_parameters()

    def reset_parameters(self):
        """Equal weights; means at random rows of the data; scales those of the columns."""
        with torch.no_grad():
            self.weight_logits.zero_()
            self.loc.copy_(self.starts.draw(len(self.loc)))
            above = (self.starts.spread - self.min_scale).clamp(min=self.min_scale)
            self.raw_scale.copy_((above + (-(-above).expm1()).log()).expand_as(self.loc))

    def scale(self):
        """Standard deviations of the components, (K, d)."""
        return self.min_scale + nn.functional.softplus(self.raw_scale)

    def forward(self, x=None, index=None):
        weight_logits, loc, scale = self.weight_logits, self.loc, self.scale()
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Categorical(logits=weight_logits))
            return pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n,).  Bishop 2006, eq. 9.10-9.11."""
    pi, mu, sigma = model.weight_logits.softmax(-1)[z], model.loc[z], model.scale()[z]
    squares = ((x - mu) / sigma) ** 2
    return pi.log() - 0.5 * (squares + math.log(2 * math.pi) + 2 * sigma.log()).sum(-1)


def component_log_joint(model, x):
    """log p(x, z = k) of every row and component: (n, K), a component at a time."""
    pairs = zip(model.loc, model.scale(), strict=True)
    each = [dist.Normal(loc, scale).log_prob(x).sum(-1) for loc, scale in pairs]
    return torch.stack(each, -1) + model.weight_logits.log_softmax(-1)


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats; the sum over components."""
    return component_log_joint(model, x).logsumexp(-1)


def posterior(model, x):
    """p(z given x), Categorical with batch (n,)."""
    return dist.Categorical(logits=component_log_joint(model, x))


@zoo.register
def build(data="digits", num_components=10, min_scale=0.05):
    """The problem; data as `zoo.data.as_dataset` takes it; min_scale in the data's units."""
    require_count(num_components=num_components)
    require_positive(min_scale=min_scale)
    data = as_dataset(data)
    return zoo.Problem(
        model=GaussianMixture(data.train, num_components, min_scale),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "sum over the components", log_evidence, posterior),
        predictive_mean=lambda model, z: model.loc[z],
    )

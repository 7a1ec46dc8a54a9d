"""Bernoulli mixture: which of K prototypes does a binary vector come from?

The textbook model for groups of binary vectors, such as pictures of black and white pixels or
lists of answers.  The likelihood has many local maxima and the latent is discrete, so its
gradient needs the score function or a sum over the components.

Story:
    z_n     ~ Categorical(weights)          component of datum n, one of K
    x_n | z ~ Bernoulli(p_z), event (d,)    binary vector
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0, the sum over K components in log space.
Differs from the source in: parameters by maximum likelihood, in logits, so that p near 0 and 1 is
    stable.
Raises: ZooError for values other than 0 and 1, or num_components < 1.
Source: Bishop 2006, Pattern Recognition and Machine Learning, section 9.3.3.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.data import as_dataset
from zoo.densities import log_bernoulli
from zoo.distributions import BernoulliVector
from zoo.errors import require_count
from zoo.starts import Starts


class BernoulliMixture(PyroModule):
    """The program; `weight_logits` (K,), `logits` (K, d)."""

    def __init__(self, rows, num_components):
        super().__init__(zoo.unique("bernoulli_mixture"))
        self.starts = Starts(rows)
        self.weight_logits = nn.Parameter(torch.empty(num_components))
        self.logits = nn.Parameter(torch.empty(num_components, rows.shape[-1]))
        self.reset_parameters()

    def reset_parameters(self):
        """Equal weights; prototypes half way between random rows and fair coins.

        From coins alone a few components take all rows, and the others never move.
        """
        with torch.no_grad():
            self.weight_logits.zero_()
            rows = self.starts.draw(len(self.logits))
            self.logits.copy_((0.25 + 0.5 * rows).clamp(0.05, 0.95).logit())

    def forward(self, x=None, index=None):
        weight_logits, logits = self.weight_logits, self.logits
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Categorical(logits=weight_logits))
            return pyro.sample("x", BernoulliVector(logits[z]), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n,).  Bishop 2006, eq. 9.48."""
    return model.weight_logits.log_softmax(-1)[z] + log_bernoulli(x, model.logits[z])


def component_log_joint(model, x):
    """log p(x, z = k) of every row and component: (n, K)."""
    softplus = nn.functional.softplus(model.logits).sum(-1)
    return x @ model.logits.T - softplus + model.weight_logits.log_softmax(-1)


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats; the sum over components."""
    return component_log_joint(model, x).logsumexp(-1)


def posterior(model, x):
    """p(z given x), Categorical with batch (n,); its logits are linear in x."""
    return dist.Categorical(logits=component_log_joint(model, x))


@zoo.register
def build(data="digits", num_components=10):
    """The problem; data as `zoo.data.as_dataset` takes it, binary."""
    require_count(num_components=num_components)
    data = as_dataset(data, binary=True)
    return zoo.Problem(
        model=BernoulliMixture(data.train, num_components),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "sum over the components", log_evidence, posterior),
        predictive_mean=lambda model, z: model.logits[z].sigmoid(),
    )

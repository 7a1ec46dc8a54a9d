"""Latent class model: one hidden group explains why answers to many questions agree.

The mixture for tables of categories, such as questionnaires, diagnoses, or pixels in a few levels
of gray: within a class the answers are independent.  How classes are numbered is arbitrary, and
with many classes the likelihood has many local maxima.

Story:
    z_n         ~ Categorical(weights)        class of datum n, one of K
    x_n,i | z   ~ Categorical(p_z,i)          answer i, one of L levels, i = 1, ..., d
Data: rows of whole numbers from 0 to L - 1; the named sets, whose values are from 0 to 1, are cut
    into L levels of equal width; default the digits.
Truth: T0, the sum over K classes in log space.
Differs from the source in: all answers have the same levels; parameters in logits.
Raises: ZooError for num_classes < 1, num_levels < 2, or values other than 0, 1, ..., L - 1.
Source: Lazarsfeld & Henry 1968, Latent structure analysis; Goodman 1974, Exploratory latent
    structure analysis using both identifiable and unidentifiable models, eq. 1-2.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.data import as_dataset
from zoo.distributions import CategoricalVector
from zoo.errors import require, require_count


class LatentClass(PyroModule):
    """The program; `weight_logits` (K,), `logits` (K, d, L)."""

    def __init__(self, width, num_classes, num_levels):
        super().__init__(zoo.unique("latent_class"))
        self.weight_logits = nn.Parameter(torch.empty(num_classes))
        self.logits = nn.Parameter(torch.empty(num_classes, width, num_levels))
        self.reset_parameters()

    def reset_parameters(self):
        """Equal weights; answers close to uniform, at random."""
        with torch.no_grad():
            self.weight_logits.zero_()
            self.logits.normal_(std=0.5)

    def forward(self, x=None, index=None):
        weight_logits, logits = self.weight_logits, self.logits
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Categorical(logits=weight_logits))
            return pyro.sample("x", CategoricalVector(logits[z]), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n,).  Goodman 1974, eq. 1."""
    pi, p = model.weight_logits.softmax(-1)[z], model.logits.softmax(-1)[z]
    answers = (x[..., None] == torch.arange(p.shape[-1]).to(x)).to(p)
    return pi.log() + (answers * p.log()).sum((-2, -1))


def component_log_joint(model, x):
    """log p(x, z = k) of every row and class: (n, K), a matrix product a level."""
    log_p = model.logits.log_softmax(-1)
    each = ((x == level).to(log_p) @ log_p[..., level].T for level in range(log_p.shape[-1]))
    return sum(each) + model.weight_logits.log_softmax(-1)


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats; the sum over classes."""
    return component_log_joint(model, x).logsumexp(-1)


def posterior(model, x):
    """p(z given x), Categorical with batch (n,); its logits are linear in the one-hot answers."""
    return dist.Categorical(logits=component_log_joint(model, x))


def predictive_mean(model, z):
    """E[x given z], (..., d) levels."""
    p = model.logits.softmax(-1)[z]
    return p @ torch.arange(p.shape[-1]).to(p)


@zoo.register
def build(data="digits", num_classes=10, num_levels=4):
    """The problem; data as `zoo.data.as_dataset` takes it, own rows in whole numbers."""
    require_count(num_classes=num_classes)
    require(
        type(num_levels) is int and num_levels >= 2,
        f"num_levels must be a whole number of at least 2, got {num_levels!r}",
    )
    named = isinstance(data, str)
    data = as_dataset(data)
    if named:
        data = data.map(lambda rows: (rows * num_levels).floor().clamp(max=num_levels - 1))
    return zoo.Problem(
        model=LatentClass(data.width, num_classes, num_levels),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "sum over the classes", log_evidence, posterior),
        predictive_mean=predictive_mean,
    )

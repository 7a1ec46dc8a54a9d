"""Semi-supervised VAE: what can be learned from a few labels and many data without?

Images are drawn by their class and by hidden numbers for all that the class does not say.  Data
without a label teach what images look like, data with one what the classes are; the label of an
image is inferred by which class draws it best.  The model M2 of the source.

Story:
    report_n           ~ Categorical over the K labels, equally likely, and K, "not told"
    y_n                ~ Categorical(1/K), the label of a datum whose label is not told
    z_n                ~ Normal(0, I), event (k,)
    x_n | report, y, z ~ Bernoulli(logits = decoder(z_n, label)), event (d,), where the label is the
                         report, or y_n where it is not told
Data: rows of 0 and 1 whose last column is the report: a label from 0 to K - 1, or K where it is not
    told.  Of a set's name, such as the default digits, `num_labels` training rows tell theirs, the
    same number of each class, and no test row does.
Truth: T1 for k of 1 or 2, the trapezoid rule on a grid for every class; T2 otherwise, bounds from
    below and, on simulated data, from above.
Differs from the source in: y is there, and idle, where the label is told, so that every row has the
    same latents; the evidence of such a row is log p(x, label), and that of another log p(x), up to
    the log probability of being told, a constant of the data.  Layers are hyperbolic tangents.
Raises: ZooError for a set without labels, more labels than there are, reports or pixels out of
    range, num_classes below 2, or latent_dim below 1 or above the data's width.
Source: Kingma, Rezende, Mohamed & Welling 2014, Semi-supervised learning with deep generative
    models, eq. 2, 6 and 7.
"""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

import zoo
from zoo.data import as_dataset, check_latent_dim
from zoo.densities import log_bernoulli
from zoo.distributions import BernoulliVector
from zoo.errors import require
from zoo.nets import MultiInput, check_hidden, one_hot
from zoo.problem import BOUNDED
from zoo.truth import quadrature


class SemiSupervisedVAE(PyroModule):
    """The program; `decoder` maps z (..., k) and one-hot labels (..., K) to logits (..., d).

    `report` (K + 1,): probabilities of the labels that are told, and of none.
    """

    def __init__(self, width, num_classes, latent_dim, hidden, share_told):
        super().__init__(zoo.unique("ss_vae"))
        self.num_classes, self.latent_dim = num_classes, latent_dim
        self.decoder = MultiInput((latent_dim, num_classes), hidden, width)
        told = [share_told / num_classes] * num_classes
        self.register_buffer("report", torch.tensor([*told, 1 - share_told]))

    def logits(self, z, label):
        """Logits of the pixels: z (..., k), label (...) whole numbers -> (..., d)."""
        return self.decoder(z, one_hot(label, self.num_classes, z.dtype))

    def forward(self, x=None, index=None):
        report, K = self.report, self.num_classes
        zeros = report.new_zeros(self.latent_dim)
        with zoo.datum(x, index) as rows:
            pixels, reports = (None, None) if rows is None else (rows[..., :-1], rows[..., -1])
            told = pyro.sample("report", dist.Categorical(report), obs=reports)
            y = pyro.sample("y", dist.Categorical(logits=report.new_zeros(K)))
            z = pyro.sample("z", dist.Normal(zeros, 1).to_event(1))
            label = torch.where(told < K, told, y)
            return pyro.sample("x", BernoulliVector(self.logits(z, label)), obs=pixels)


def log_joint(model, x, y, z):
    """log p(x, y, z) of every row, (n,) nats; x (n, d + 1), y (n,), z (n, k)."""
    K, report = model.num_classes, x[..., -1].long()
    label = torch.where(report == K, y, report)
    logits = model.decoder(z, torch.eye(K).to(x)[label])
    log_likelihood = log_bernoulli(x[..., :-1], logits)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) - math.log(K)
    return log_prior + model.report[report].log() + log_likelihood


def cross_log_likelihood(model, x, z):
    """log p(x_n given z_g), the labels that are not told summed out: x (n, d + 1) -> (n, g)."""
    K, report, pixels = model.num_classes, x[:, -1].long(), x[:, :-1]
    total = torch.full((), -math.inf)
    for label in range(K):
        logits = model.logits(z, torch.full((len(z),), label, device=z.device))
        own = pixels @ logits.T - torch.nn.functional.softplus(logits).sum(-1)
        share = torch.where(report == K, 1 / K, (report == label).to(x.dtype))
        total = torch.logaddexp(total.to(own), own + share.log()[:, None])
    return total + model.report[report].log()[:, None]


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats, by quadrature; the report of a row is part of it."""
    return quadrature(lambda x, z: cross_log_likelihood(model, x, z), x, model.latent_dim)[0]


def evidence_error(model, x):
    """Stated error of `log_evidence`, (n,) nats."""
    return quadrature(lambda x, z: cross_log_likelihood(model, x, z), x, model.latent_dim)[1]


def _truth(latent_dim):
    if latent_dim > 2:
        return BOUNDED
    how = "trapezoid rule on a grid, summed over the classes, with a stated error"
    return zoo.Truth("T1", how, log_evidence, None, evidence_error)


def with_reports(data, num_labels, num_classes=10, seed=0):
    """A DataSet of pixels and labels with reports as the last column, and no image shape.

    num_labels: how many training rows, drawn by `seed`, tell their label, equally many of each
    class.  Test rows tell none.
    """
    labels = data.train_labels
    require(labels is not None, f"the set {data.name!r} has no labels; digits and mnist have")
    largest = int(labels.max())
    require(largest < num_classes, f"num_classes is {num_classes}, but there is label {largest}")
    require(
        type(num_labels) is int and num_labels >= 0 and num_labels % num_classes == 0,
        f"num_labels must be a multiple of the {num_classes} classes, got {num_labels!r}",
    )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    reports = torch.full_like(labels, num_classes)
    for label in range(num_classes):
        own = order[labels[order] == label][: num_labels // num_classes]
        short = len(own) * num_classes < num_labels
        require(not short, f"num_labels is {num_labels}, but only {len(own)} rows are a {label}")
        reports[own] = label
    blank = data.map(lambda rows: torch.cat([rows, rows.new_full((len(rows), 1), num_classes)], 1))
    train = torch.cat([data.train, reports[:, None].to(data.train)], 1)
    return replace(blank, train=train, image_shape=None)


@zoo.register
def build(data="digits", num_labels=100, num_classes=10, latent_dim=2, hidden=(100, 100)):
    """The problem; data: a set's name, or rows or a DataSet whose last column is the report.

    num_labels: training rows of a named set that tell their label; rows of your own say so
    themselves.  num_classes: K; hidden: widths of decoder layers.
    """
    require(
        type(num_classes) is int and num_classes >= 2,
        f"num_classes must be a whole number of at least 2, got {num_classes!r}",
    )
    named, data = isinstance(data, str), as_dataset(data, binary=True)
    data = with_reports(data, num_labels, num_classes) if named else data
    require(data.width >= 2, "rows are pixels and a last column that tells the label; got 1 column")
    check_latent_dim(latent_dim, data)
    check_hidden(hidden)
    told = (data.train[:, -1] != num_classes).double()
    share_told = ((told.sum() + 1) / (len(told) + 2)).item()  # for it must be neither 0 nor 1
    model = SemiSupervisedVAE(data.width - 1, num_classes, latent_dim, tuple(hidden), share_told)
    return zoo.Problem(
        model=model,
        data=data,
        log_joint=log_joint,
        truth=_truth(latent_dim),
        label="y",
    )

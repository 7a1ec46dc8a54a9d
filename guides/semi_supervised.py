"""Semi-supervised: a classifier for the label, and encoders that see the label, told or inferred.

Family: q(z) = prod_n q(y_n; classifier(x_n)) prod_l q(z_nl; encoder_l(x_n, label_n, z_n1, ...)),
    where the label is the one that is told, or y_n; an idle y_n, of a datum whose label is told,
    is uniform, as in the model.  x_n is the row but for its report.
    A fit trains the classifier also by what is told: the gradient has that of
    weight * N * mean of -log q(label; classifier(x)) over the told rows, drawn anew at every step
    where they are many.  That is no part of the bound: no loss and no measure that is reported has
    it, and `pyro.infer.SVI`, which knows nothing of it, trains by the bound alone.
Cannot represent: as `top_down`.
Needs: a problem whose `label` names a finite latent, and no latent outside the plate.
Source: Kingma, Rezende, Mohamed & Welling 2014, Semi-supervised learning with deep generative
    models, eq. 4 and 9.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

import guides
import zoo
from guides.families import choose_each
from guides.sources import Encoder
from guides.top_down import encoders, sample_in_turn
from guides.unsuited import require_suited
from zoo.errors import require
from zoo.nets import check_hidden, one_hot

TOLD_AT_ONCE = 256  # rows by which a step trains the classifier


class SemiSupervised(PyroModule):
    """A Pyro guide `guide(x, index=None)`; `told` are the training rows that tell their label."""

    name = "semi_supervised"
    tabular = False

    def __init__(self, problem, family, hidden, weight, image_shape=None):
        super().__init__(zoo.unique(self.name))
        _check(problem)
        (label,) = (latent for latent in problem.latents if latent.name == problem.label)
        train = problem.data.train
        self.plate, self.family, self.weight = problem.plate, family, weight
        self.label, self.num_labels = label.name, label.num_values
        self.others = tuple(latent for latent in problem.latents if latent is not label)
        self.register_buffer("told", (train[:, -1] != self.num_labels).nonzero()[:, 0])
        self.classifier = Encoder(train[:, :-1], hidden, self.num_labels, image_shape=image_shape)
        self.families = choose_each(family, self.others)
        widths = (self.num_labels,)
        self.sources = encoders(self.others, self.families, train[:, :-1], hidden, widths)

    def forward(self, x=None, index=None):
        with zoo.datum(x, index, self.plate) as rows:
            data, reports = rows[..., :-1], rows[..., -1]
            told = reports != self.num_labels
            logits = self.classifier(data, index).masked_fill(told[..., None], 0.0)
            y = pyro.sample(self.label, dist.Categorical(logits=logits))
            label = torch.where(told, reports, y)
            seen = one_hot(label, self.num_labels, rows.dtype)
            sample_in_turn(self, self.others, data, index, seen)

    def extra_loss(self, x, index=None):
        """What a fit adds to the loss whose gradient it follows, nats of all data together.

        x: (n, d), the training rows that the guide was built for.
        """
        if not len(self.told):
            return 0.0
        told = self.told
        if len(told) > TOLD_AT_ONCE:
            luck = torch.rand(TOLD_AT_ONCE, device=x.device)
            told = told[(luck * len(told)).long()]
        logits, labels = self.classifier(x[told, :-1], None), x[told, -1].long()
        return self.weight * len(x) * torch.nn.functional.cross_entropy(logits, labels)


def _check(problem):
    """Refuse latents without a label among them, and those outside the plate."""
    require_suited(
        problem.label is not None,
        f"semi_supervised does not suit {problem.name}: none of its latents "
        f"({', '.join(latent.name for latent in problem.latents) or 'it has none'}) is a label "
        "that some rows tell",
    )
    for latent in problem.latents:
        require_suited(
            latent.local,
            f"semi_supervised does not suit latent {latent.name!r}: it stands in no plate",
        )


@guides.register
def build(problem, family="auto", hidden=(100, 100), weight=0.1, image_shape=None):
    """The guide; family: of the other latents; hidden: widths of the layers of every network.

    weight: of what is told, the alpha of the source over the number of data.  image_shape: (height,
    width) where rows are images whose classifier shall be a network of convolutions.
    """
    check_hidden(hidden)
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    require(
        number and 0 <= weight < math.inf, f"weight must be a number of at least 0, got {weight!r}"
    )
    shape = _checked(image_shape, problem)
    return SemiSupervised(problem, family, tuple(hidden), float(weight), shape)


def _checked(image_shape, problem):
    """The shape as a tuple, or None."""
    if image_shape is None:
        return None
    sides, pixels = image_shape, problem.data.width - 1
    good = isinstance(sides, list | tuple) and len(sides) == 2
    good = good and all(type(side) is int and side >= 1 for side in sides)
    require(
        good and math.prod(sides) == pixels,
        f"image_shape must be [height, width] of {pixels} pixels, got {image_shape!r}",
    )
    return tuple(sides)

"""The independent judge of pictures: which digit they show, how surely, how near real ones are.

And what the studies of pictures share: how their models are fitted, codes, and sheets of pictures.

Half of the training images are kept from the generative models.  On them alone the judge learns
(a) a classifier, multinomial logistic regression on radial basis functions, whose probabilities
    need no later calibration, since it is trained by their logarithm;
(b) a density of the k-nearest-neighbor kind: -d log r up to a constant, where r is the distance to
    the k-th nearest of them.  What is reported is log r, less its mean over the held-out images:
    0 is a typical real image, above it is further away.
Its own accuracy and calibration are taken on the held-out (test) images, which neither it nor a
model has seen.  What it judges are expected pixels E[x given z], made black and white first, as
what it learned from: it knows nothing of gray, and an average is near to everything.
Source: Loftsgaarden & Quesenberry 1965, A nonparametric estimate of a multivariate density
    function, for the distance; Salimans et al. 2016, Improved techniques for training GANs,
    section 4, for judging samples by a classifier; Guo et al. 2017, On calibration of modern neural
    networks, section 2, for the calibration error.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.stats import entropy
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline

import experiments
import guides
import zoo
from experiments.report.page import Table
from experiments.studies.parts.cells import number
from experiments.svi.config import Settings
from zoo.data.dataset import subset
from zoo.errors import require

NEIGHBOR = 5  # which of the nearest images the distance is to
FUNCTIONS = 1000  # radial basis functions at most
STRENGTH = 100.0  # inverse weight of the penalty: least log loss on a quarter of its own images
BINS = 10  # of the calibration error


class Training(Settings):
    """The data, and how the models of a study of pictures are built and trained."""

    data: Literal["digits", "mnist"] = "mnist"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (200, 200)
    """Widths of the layers of decoder and encoder, of every model."""
    seeds: int = Field(5, ge=2)
    steps: int = Field(1500, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(0.003, gt=0)


def halves(name, most):
    """(what the models may see, what the judge may see), two DataSets of binary images.

    Each has half of the training images of the set, drawn once and for all, the judge `most` of its
    half at most; both hold out the test images.
    """
    data = zoo.data.load(name).binarized()
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    middle = len(order) // 2
    return [
        replace(data, train=data.train[rows], train_labels=data.train_labels[rows])
        for rows in (order[:middle], order[middle:][:most])
    ]


def thinned(data, count, *parts):
    """The set with `count` rows at most of those parts, from all over them, always the same."""
    found = {}
    for part in parts:
        rows = subset(getattr(data, part), count)
        found |= {name: getattr(data, name)[rows] for name in (part, f"{part}_labels")}
    return replace(data, **found)


@dataclass(frozen=True, eq=False)
class Judge:
    """The judge that has seen the training rows of `data`, its half of `halves`."""

    data: zoo.data.DataSet

    @cached_property
    def _classifier(self):
        rows = self.data.train.numpy()
        width = 1 / (rows.shape[1] * rows.var())
        basis = Nystroem(gamma=width, n_components=min(FUNCTIONS, len(rows)), random_state=0)
        found = make_pipeline(basis, LogisticRegression(C=STRENGTH, max_iter=5000))
        return found.fit(rows, self.data.train_labels.numpy())

    @cached_property
    def _neighbors(self):
        return NearestNeighbors(n_neighbors=NEIGHBOR).fit(self.data.train.numpy())

    @cached_property
    def _typical(self):
        return self._log_distance(self.data.test).mean()

    def probabilities(self, pictures):
        """p(label given picture) of pictures (n, d): (n, labels)."""
        return self._classifier.predict_proba(_black_and_white(pictures))

    def labels(self, pictures):
        """The likeliest label of pictures (n, d): (n,)."""
        return self.probabilities(pictures).argmax(-1)

    def away(self, pictures):
        """log r of pictures (n, d), less its mean over held-out images: (n,)."""
        return self._log_distance(pictures) - self._typical

    def scores(self, pictures):
        """Means over pictures (n, d), as numbers.

        confidence: the largest probability.  away: see `away`.  information: what a picture says
        of the label, in nats: the entropy of the mean probabilities less the mean entropy, which
        is high where every picture is sure and all labels are shown.
        """
        p = self.probabilities(pictures)
        return {
            "confidence": float(p.max(-1).mean()),
            "away": float(self.away(pictures).mean()),
            "information": float(entropy(p.mean(0)) - entropy(p.T).mean()),
        }

    def quality(self):
        """How good the judge is on the held-out images, as numbers.

        calibration_error: the mean distance of confidence from accuracy over bins of confidence.
        away_sd: the spread of log r over held-out images, the scale of `away`.
        """
        p, truth = self.probabilities(self.data.test), self.data.test_labels.numpy()
        right, sure = p.argmax(-1) == truth, p.max(-1)
        bins = np.minimum((sure * BINS).astype(int), BINS - 1)
        off = [abs((sure - right)[bins == b].sum()) for b in range(BINS)]
        return {
            "rows": len(self.data.train),
            "held_out": len(truth),
            "accuracy": float(right.mean()),
            "confidence": float(sure.mean()),
            "calibration_error": float(sum(off) / len(truth)),
            "away_sd": float(self.away(self.data.test).std()),
        }

    def _log_distance(self, pictures):
        distances, _ = self._neighbors.kneighbors(_black_and_white(pictures))
        return np.log(distances[:, -1].clip(min=1.0))  # at least one pixel, for its logarithm


def _black_and_white(pictures):
    return (torch.as_tensor(pictures).detach().cpu().numpy() >= 0.5).astype(np.float64)


def trained(name, data, settings, device, guide="amortized", guide_options=None, **options):
    """(seed, problem, guide) for every seed of a model that is fitted as the settings say."""
    problem = zoo.load(name, data=data, hidden=settings.hidden, **options)
    built = guides.build(guide, problem, hidden=settings.hidden, **(guide_options or {}))
    fit = experiments.fit(
        problem,
        built,
        steps=settings.steps,
        seeds=settings.seeds,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        device=device,
    )
    return list(zip(fit.seeds, fit.problems, fit.guides, strict=True))


@torch.no_grad()
def codes(guide, x, latent="z"):
    """The mean of q(z given x) of every row (n, d), for a point the point itself: (n, k)."""
    found = guide.distribution(latent, guide.rows(x)[latent]).mean
    require(found.isfinite().all(), "training diverged: take a smaller learning_rate")
    return found


@torch.no_grad()
def decoded(problem, z, **others):
    """E[x given z] of codes z (..., k): (..., d)."""
    return problem.predictive_mean(problem.model, z=z, **others)


def packed(images):
    """Images (lines, columns, d) for a record: lists of texts, two hexadecimal digits a pixel."""
    shades = (255 * images).round().to(torch.uint8).cpu().numpy()
    return [[image.tobytes().hex() for image in line] for line in shades]


def show(axis, images, shape, title=""):
    """Draw `packed` images as a sheet with a gap of one pixel; shape: (height, width)."""
    shades = [[list(bytes.fromhex(image)) for image in line] for line in images]
    images = np.array(shades).reshape(len(images), -1, *shape) / 255
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    lines, columns, height, width = framed.shape
    sheet = framed.transpose(0, 2, 1, 3).reshape(lines * height, columns * width)
    axis.imshow(sheet[:-1, :-1], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[:].set_visible(False)


def quality_table(quality):
    """What the judge is worth."""
    caption = (
        "The judge learned from training images that no generative model saw, and is tested on "
        "images that neither saw. calibration error: mean distance of confidence from accuracy. "
        "spread: standard deviation of log distance over real held-out images, whose mean is 0."
    )
    names = ("accuracy", "confidence", "calibration_error", "away_sd")
    cells = [number(quality[name], 0) for name in ("rows", "held_out")]
    cells += [number(quality[name]) for name in names]
    head = ["learned from", "tested on", "accuracy", "confidence", "calibration error", "spread"]
    return Table("The independent judge", head, [cells], caption)

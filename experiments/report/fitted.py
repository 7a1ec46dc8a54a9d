"""The figures that need the fits themselves: a plane of latents, and pictures."""

import math

import matplotlib as mpl
import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine

from experiments.measure.elbo import draw
from experiments.measure.streams import stream
from zoo.problem import sample_sites

ABREAST = 4  # panels of a plane in a line
STRIP = 6.3  # inches that a line of pictures is wide, beside its words


def latent_plane(model, group):
    """Posterior means of a plane of latents by class, a panel a guide; None for other models."""
    first = next(iter(group.values())).problem
    planes = [latent.name for latent in first.latents if latent.event_shape == (2,)]
    if not planes or first.data.train_labels is None:
        return None
    figure, axes = _plane_panels(len(group))
    labels = first.data.train_labels
    for axis, (guide, fit) in zip(axes, group.items(), strict=False):
        draws = draw(fit.models[0], fit.guides[0], first.data.train, 100)
        points = _classes(axis, draws.latents[planes[0]].mean(0), labels)
        axis.set(title=guide, aspect="equal")
    shown = axes[: len(group)]
    ticks = range(int(labels.max()) + 1)
    figure.colorbar(points, ax=shown, label="class", ticks=ticks, aspect=30)
    figure.suptitle(f"{model}: posterior means of the training data, seed {fit.seeds[0]}")
    return figure


def _plane_panels(count):
    """The figure, and its axes in lines of ABREAST; axes are named at the left and below."""
    columns = min(count, ABREAST)
    lines = -(-count // columns)
    figure = Figure(figsize=(3 * columns + 1.2, 3 * lines + 0.8), layout="compressed")
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    for i, axis in enumerate(axes):
        axis.set_visible(i < count)
        if i + columns >= count:
            axis.set_xlabel("$z_1$")
            axis.tick_params(labelbottom=True)
        if i % columns == 0:
            axis.set_ylabel("$z_2$")
    return figure, axes


def _classes(axis, places, labels):
    """Points (n, 2) in the colors of their classes."""
    classes = int(labels.max()) + 1
    cmap = mpl.colormaps["tab10" if classes <= 10 else "turbo"].resampled(classes)
    look = {"cmap": cmap, "vmin": -0.5, "vmax": classes - 0.5, "s": 6, "linewidth": 0}
    return axis.scatter(*places.T, c=labels, **look)


@torch.no_grad()
def pictures(model, group, columns=12):
    """Data, reconstructions and draws as images; None where rows are no images."""
    first = next(iter(group.values())).problem
    if first.data.image_shape is None or (first.latents and first.predictive_mean is None):
        return None
    lines = {"data": first.data.train[:columns]}
    for guide, fit in group.items():
        lines |= _shown(guide, fit, first.data.train, columns)
    what = "expected pixels" if first.latents else "pixels"
    title = f"{model}: {what}, seed {next(iter(group.values())).seeds[0]}"
    return _sheet(lines, first.data.image_shape, max(1.0, first.data.train.max().item()), title)


def _shown(guide, fit, data, columns):
    """{words: images (columns, d)} of a fit: reconstructions of the first data, and draws."""
    problem = fit.problems[0]
    if not problem.latents:
        return {"draws": _drawn(problem, columns)}
    shown = torch.arange(min(columns, len(data)))
    latents = draw(problem.model, fit.guides[0], data, 100, index=shown).latents
    return {
        f"reconstruction,\n{guide}": problem.predictive_mean(problem.model, **latents).mean(0),
        f"prior draws,\n{guide}": _prior_means(problem, columns),
    }


def _sheet(lines, shape, white, title):
    """A figure of lines of images, as high as they need."""
    strips = {name: _strip(images, shape) for name, images in lines.items()}
    height, width = next(iter(strips.values())).shape
    tall = max(0.36, STRIP * height / width + 0.1)  # two lines of words at least
    figure = Figure(figsize=(STRIP + 1.7, tall * len(lines) + 0.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.02)
    axes = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for axis, (name, strip) in zip(axes, strips.items(), strict=True):
        axis.imshow(strip, cmap="gray_r", vmin=0, vmax=white, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    figure.suptitle(title)
    return figure


def _prior_means(problem, count):
    """E[x given z] at draws of the latents from the prior: (count, d)."""
    nodes = _several(problem, count).nodes
    latents = {latent.name: nodes[latent.name]["value"] for latent in problem.latents}
    return problem.predictive_mean(problem.model, **latents).reshape(count, -1)


def _drawn(problem, count):
    """Rows drawn from a model without latents: (count, d)."""
    (site,) = sample_sites(_several(problem, count))
    return site["value"].reshape(count, -1)


def _several(problem, count):
    """A trace of `count` draws of the model without data."""

    def several():
        with pyro.plate("draws", count, dim=-2):
            problem.model()

    with stream(0, torch.device("cpu")):
        return poutine.trace(several).get_trace()


def _strip(images, shape):
    """Images (m, d) side by side with a gap of one pixel."""
    height, width = shape
    blocks = np.full((height, len(images) * (width + 1) - 1), math.nan)
    for i, image in enumerate(images.reshape(-1, height, width).numpy()):
        blocks[:, i * (width + 1) : i * (width + 1) + width] = image
    return blocks

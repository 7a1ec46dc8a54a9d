"""The figures of a comparison; each function draws one, and leaves it out where it has no sense."""

import math

import matplotlib as mpl
import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine

from experiments.measure.elbo import draw
from experiments.measure.streams import stream
from experiments.report.columns import model_of, rows
from experiments.report.costs import costs
from experiments.report.page import Picture
from experiments.report.table import as_text
from zoo.problem import sample_sites

GUIDE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
WORDS = {
    "elbo.png": "The bound on the training data during training, against steps and seconds",
    "gaps.png": "Gaps to the exact evidence, split into what the family and what the encoder loses",
    "costs.png": "What guides lose against what a new datum costs",
}
"""What there is to see in the figures of all models."""
PLANE = "posterior means of the training data by class, a panel a guide"
IMAGES = "data, and beside them what the fits reconstruct or draw"


def draw_figures(folder, records, fits):
    """Draw what the records and the fits allow, as PNG files into the folder.

    Returns a Picture for each.
    """
    folder.mkdir(exist_ok=True)
    done = [record for record in records if record["status"] == "ok"]
    if not done:
        return []
    with mpl.rc_context(STYLE):
        found = [
            _save(bounds(done), folder / "elbo.png", WORDS["elbo.png"]),
            _save(gap_bars(done), folder / "gaps.png", WORDS["gaps.png"]),
            _save(costs(done), folder / "costs.png", WORDS["costs.png"]),
        ]
        for model, group in _by_model(fits).items():
            plane, images = f"{model}-latent-plane.png", f"{model}-pictures.png"
            found += [
                _save(latent_plane(model, group), folder / plane, f"{model}: {PLANE}"),
                _save(pictures(model, group), folder / images, f"{model}: {IMAGES}"),
            ]
    return [picture for picture in found if picture is not None]


def bounds(records):
    """The bound during training against steps and against seconds, with bands over seeds.

    None where every fit was a closed form.
    """
    records = [record for record in records if len(record["trace"]["step"]) > 1]
    if not records:
        return None
    models = list(dict.fromkeys(model_of(record) for record in records))
    figure = Figure(figsize=(8, 2.3 * len(models)))
    axes = figure.subplots(len(models), 2, squeeze=False, sharey="row")
    named = set()
    for (left, right), model in zip(axes, models, strict=True):
        group = [record for record in records if model_of(record) == model]
        for guide, color in _colors(r["config"]["guide"] for r in records).items():
            runs = [r["trace"] for r in group if r["config"]["guide"] == guide]
            if runs:
                _band(left, runs, "step", guide, color)
                _band(right, runs, "seconds", guide, color)
        lowest = min(v for r in group for v in r["trace"]["elbo_per_datum"][_skip(r["trace"]) :])
        left.set(ylabel="ELBO, nats a datum", title=model, xlabel="step", ylim=(lowest, None))
        right.set(xlabel="seconds")
        own = {record["config"]["guide"] for record in group}
        if not own <= named:
            left.legend(loc="lower right")
        named |= own
    figure.suptitle("Bound on the training data; line: mean over seeds, band: their range")
    figure.tight_layout()
    return figure


def _skip(trace):
    """Stretches at the start that would squeeze the rest of the curve into a line."""
    return len(trace["step"]) // 20


def _band(axis, runs, against, guide, color):
    length = min(len(run["step"]) for run in runs)
    x = np.mean([run[against][:length] for run in runs], axis=0)
    y = np.array([run["elbo_per_datum"][:length] for run in runs])
    axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.25, linewidth=0)
    axis.plot(x, y.mean(0), color=color, label=guide, linewidth=1.2)


def gap_bars(records):
    """Approximation and amortization gap as stacked bars; None where no evidence is known."""
    latent = [record for record in records if record["config"]["guide"] != "empty"]
    known = [row for row in rows(latent) if row["approximation gap"] is not None]
    if not known:
        return None
    figure = Figure(figsize=(8, 0.45 * len(known) + 1.4))
    axis = figure.subplots()
    names = [f"{row['model']}, {row['guide']}" for row in known]
    left = np.zeros(len(known))
    for column, color in (("approximation gap", "#56b4e9"), ("amortization gap", "#e69f00")):
        width = np.array([row[column][0] for row in known])
        axis.barh(names, width, left=left, color=color, label=column)
        left += width
    errors = [row["total gap"][1] or 0 for row in known]
    axis.errorbar(left, names, xerr=errors, fmt="none", color="black", capsize=3)
    for name, row, end in zip(names, known, left, strict=True):
        offset = (row["total gap"][1] or 0) + 0.01 * left.max()
        axis.text(end + offset, name, f" {as_text(row['total gap'][0], 3)}", va="center")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="gap to the exact log evidence, nats a datum (bar end: ± se over seeds)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def latent_plane(model, group):
    """Posterior means of a plane of latents by class, a panel a guide; None for other models."""
    first = next(iter(group.values())).problem
    planes = [latent.name for latent in first.latents if latent.event_shape == (2,)]
    if not planes or first.data.train_labels is None:
        return None
    labels = first.data.train_labels
    classes = int(labels.max()) + 1
    cmap = mpl.colormaps["tab10" if classes <= 10 else "turbo"].resampled(classes)
    figure = Figure(figsize=(4 * len(group) + 0.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(group), squeeze=False, sharex=True, sharey=True)
    for axis, (guide, fit) in zip(axes[0], group.items(), strict=True):
        draws = draw(fit.models[0], fit.guides[0], first.data.train, 100)
        mean = draws.latents[planes[0]].mean(0)
        points = axis.scatter(
            *mean.T, c=labels, cmap=cmap, vmin=-0.5, vmax=classes - 0.5, s=6, linewidth=0
        )
        axis.set(title=guide, aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
    figure.colorbar(points, ax=axes, label="class", shrink=0.8, ticks=range(classes))
    figure.suptitle(f"{model}: posterior means of the training data, seed {fit.seeds[0]}")
    return figure


@torch.no_grad()
def pictures(model, group, columns=12):
    """Data, reconstructions and draws as images; None where rows are no images."""
    first = next(iter(group.values())).problem
    if first.data.image_shape is None or (first.latents and first.predictive_mean is None):
        return None
    lines = {"data": first.data.train[:columns]}
    for guide, fit in group.items():
        problem = fit.problems[0]
        if not first.latents:
            lines["draws"] = _drawn(problem, columns)
            continue
        shown = torch.arange(len(lines["data"]))
        latents = draw(problem.model, fit.guides[0], first.data.train, 100, index=shown).latents
        expected = problem.predictive_mean(problem.model, **latents)
        lines[f"reconstruction,\n{guide}"] = expected.mean(0)
        lines[f"prior draws,\n{guide}"] = _prior_means(problem, columns)
    figure = Figure(figsize=(8, 0.85 * len(lines) + 0.3))
    axes, white = figure.subplots(len(lines), 1), max(1.0, first.data.train.max().item())
    for axis, (name, images) in zip(axes, lines.items(), strict=True):
        strip = _strip(images, first.data.image_shape)
        axis.imshow(strip, cmap="gray_r", vmin=0, vmax=white, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    what = "expected pixels" if first.latents else "pixels"
    figure.suptitle(f"{model}: {what}, seed {fit.seeds[0]}")
    figure.tight_layout()
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


def _save(figure, path, words):
    """The Picture of a figure, saved; None where there is none."""
    if figure is None:
        return None
    figure.savefig(path)
    return Picture(path, words)


def _by_model(fits):
    """{model: {guide: Fit}} of fits by label."""
    found = {}
    for label, fit in fits.items():
        model = fit.problem.name
        found.setdefault(model, {})[label.removeprefix(f"{model}-")] = fit
    return found


def _colors(guides):
    names = list(dict.fromkeys(guides))
    return {name: GUIDE_COLORS[i % len(GUIDE_COLORS)] for i, name in enumerate(names)}

"""The figures of a comparison; each function draws one, and leaves it out where it has no sense."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.report.bars import gap_bars
from experiments.report.columns import guide_of, model_of
from experiments.report.costs import costs
from experiments.report.fitted import latent_plane, pictures
from experiments.report.page import Picture

GUIDE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", ":", (0, (6, 1.5, 1, 1.5)))
"""With the colors, the looks of as many guides as their product: all that are registered."""
BESIDE = 3  # models; where there are more, two stand in a line
UNEQUAL = 5  # times that one run lasts as long as another, where seconds have a log axis
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
    models = list(dict.fromkeys(map(model_of, records)))
    columns = 1 if len(models) <= BESIDE else 2
    lines = -(-len(models) // columns)
    size = (8 if columns == 1 else 13, 2.6 * lines + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, 2 * columns, squeeze=False).reshape(-1, 2)
    guides = looks(map(guide_of, records))
    for pair, model in zip(axes, models, strict=False):
        _curves(*pair, [record for record in records if model_of(record) == model], guides)
        pair[0].set_title(model, loc="left")
    for axis in axes[len(models) :].flat:
        axis.set_visible(False)
    _name(figure, axes[0, 0], guides)
    return figure


def looks(guides):
    """{guide: keywords of its line}: no two have both color and dashes in common."""
    names = sorted(set(guides))
    return {
        name: {
            "color": GUIDE_COLORS[i % len(GUIDE_COLORS)],
            "linestyle": LINES[i // len(GUIDE_COLORS) % len(LINES)],
        }
        for i, name in enumerate(names)
    }


def _curves(left, right, group, guides):
    """The bounds of one model, against steps and against seconds."""
    right.sharey(left)
    for guide, look in guides.items():
        runs = [record["trace"] for record in group if guide_of(record) == guide]
        if runs:
            _band(left, runs, "step", look)
            _band(right, runs, "seconds", look)
    lowest = min(v for r in group for v in r["trace"]["elbo_per_datum"][_skip(r["trace"]) :])
    left.set(ylabel="ELBO, nats a datum", xlabel="step", ylim=(lowest, None))
    left.locator_params(axis="x", nbins=5)  # five-figure steps stand apart
    right.set(xlabel="seconds")
    right.tick_params(labelleft=False)
    lasting = [record["trace"]["seconds"][-1] for record in group]
    if max(lasting) > UNEQUAL * min(lasting):
        right.set(xscale="log", xlabel="seconds, log scale")


def _skip(trace):
    """Stretches at the start that would squeeze the rest of the curve into a line."""
    return len(trace["step"]) // 20


def _band(axis, runs, against, look):
    length = min(len(run["step"]) for run in runs)
    x = np.mean([run[against][:length] for run in runs], axis=0)
    y = np.array([run["elbo_per_datum"][:length] for run in runs])
    axis.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.2, linewidth=0)
    axis.plot(x, y.mean(0), linewidth=1.2, **look)


def _name(figure, axis, guides):
    """One legend above all panels; it names the guides, and what line and band are."""
    for guide, look in guides.items():
        axis.plot([], [], label=guide, **look)
    words = "Bound on the training data; line: mean over seeds, band: their range"
    columns = 5 if figure.get_figwidth() < 10 else 7
    where = "outside upper center"
    figure.legend(loc=where, ncols=min(columns, len(guides)), title=words, handlelength=3)


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

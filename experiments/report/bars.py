"""The figure of gaps: a panel a model, a bar a guide, from what is lost to what loses it."""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.report.columns import rows
from experiments.report.table import as_text
from experiments.report.tradeoff import ends

COLORS = {
    "approximation gap": "#56b4e9",
    "amortization gap": "#e69f00",
    "total gap, its parts not known": "0.65",
    "more, at the upper bound of the evidence": "0.87",
}
BESIDE = 3  # models; where there are more, they stand in two columns
ALIKE = 20  # how many times longer a model's longest bar may be on a shared scale
LEAST = 1e-3  # nats; no scale is made for less
EXACT = ("empty", "oracle")
"""Guides that are the posterior, where all that a figure of them alone could show is 0."""


def gap_bars(records):
    """Gaps to the log evidence as bars, in their parts where these are known.

    A model whose evidence is between two bounds has a paler end between the two gaps.  None where
    no guide but the exact posterior has a known gap.
    """
    latent = [row for row in rows(records) if row["guide"] != "empty"]
    known = [row for row in latent if ends(row, "total gap")]
    if all(row["guide"] in EXACT for row in known):
        return None
    models = list(dict.fromkeys(row["model"] for row in known))
    groups = [[row for row in known if row["model"] == model] for model in models]
    groups.sort(key=len)  # panels side by side are then about as high
    own = _longest(groups)[-1] > ALIKE * _longest(groups)[0]
    figure, axes = _panels(groups, sharex=not own)
    for axis, group in zip(axes, groups, strict=False):
        _panel(axis, group)
        axis.set_title(group[0]["model"], loc="left")
    _reach(axes, groups, own)
    _words(figure, groups, own, [row for row in latent if row not in known])
    return figure


def _longest(groups):
    """The length of each model's longest bar, in order."""
    return sorted(max(LEAST, *(ends(row, "total gap")[1] for row in group)) for group in groups)


def _panels(groups, sharex):
    """The figure, and the axis of each group; bars are as thick in all of them."""
    columns = 1 if len(groups) <= BESIDE else 2
    lines = -(-len(groups) // columns)
    most = [max(map(len, groups[i * columns : (i + 1) * columns])) for i in range(lines)]
    size = (4 + 4 * columns, 0.26 * sum(most) + 0.7 * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    ratios = {"height_ratios": [count + 1.5 for count in most]}
    axes = figure.subplots(lines, columns, squeeze=False, sharex=sharex, gridspec_kw=ratios)
    axes = axes.flatten()
    for i, axis in enumerate(axes):
        axis.set_ylim(most[i // columns] - 0.4, -0.6)
        axis.tick_params(labelbottom=True)
        axis.set_visible(i < len(groups))
    return figure, axes


def _panel(axis, group):
    places = np.arange(len(group))
    left = np.zeros(len(group))
    for name, width in zip(COLORS, zip(*map(_parts, group), strict=True), strict=True):
        axis.barh(places, width, 0.75, left=left, color=COLORS[name])
        left += width
    errors = [_error(row) for row in group]
    if any(errors):
        axis.errorbar(left, places, xerr=errors, fmt="none", color="black", capsize=2, linewidth=1)
    for place, row, end, error in zip(places, group, left, errors, strict=True):
        beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(_number(row), (end + error, place), **beside)
    axis.set_yticks(places, [row["guide"] for row in group])
    axis.tick_params(axis="y", length=0)


def _parts(row):
    """The lengths of a bar's four parts, in the order of COLORS; none is below 0.

    Beside an interval the amortization gap is that of the rows whose evidence has one.
    """
    low, high = ends(row, "total gap")
    family = ends(row, "approximation gap")
    found = (0.0, 0.0, low) if family is None else (family[0], low - family[0], 0.0)
    return [max(part, 0.0) for part in (*found, high - low)]  # noise goes below 0


def _error(row):
    """The standard error over seeds of the bar's end; 0 for one seed."""
    return (row["total gap"] or row["total gap upper"])[1] or 0.0


def _number(row):
    low, high = ends(row, "total gap")
    if row["total gap"] is None:
        return f"[{as_text(low, 3)}, {as_text(high, 3)}]"
    return as_text(low, 3)


def _reach(axes, groups, own):
    """Leave room for the numbers at the ends of the bars."""
    reach = [max(LEAST, *map(_room, group)) for group in groups]
    for axis, longest in zip(axes, reach, strict=False):
        axis.set_xlim(0, longest if own else max(reach))


def _room(row):
    """How far an axis goes for a bar and its number; two numbers are longer than one."""
    return (sum(_parts(row)) + _error(row)) * (1.25 if row["total gap"] else 1.5)


def _words(figure, groups, own, missing):
    """The legend of the parts that occur, and what the axis says."""
    every = [row for group in groups for row in group]
    lengths = np.sum(list(map(_parts, every)), axis=0)
    shown = [name for name, length in zip(COLORS, lengths, strict=True) if length > 0]
    patches = [Patch(color=COLORS[name], label=name) for name in shown]
    figure.legend(handles=patches, loc="outside upper center", ncols=2)
    words = "gap to the log evidence, nats a datum"
    words += " (bar end: ± se over seeds)" if any(map(_error, every)) else ""
    words += "; each model has its own scale" if own else ""
    figure.supxlabel("\n".join([words, *_missing(missing)]), fontsize="medium")


def _missing(found):
    """Lines that name the guides of which no gap is known."""
    if not found:
        return []
    names = ", ".join(f"{row['model']} {row['guide']}" for row in found)
    return textwrap.wrap(f"No evidence, so no bar: {names}.", 100)

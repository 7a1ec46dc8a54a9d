"""The figure of costs: a panel a model, what guides lose against what a new datum costs."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.report.columns import rows
from experiments.report.labels import Crowd, place
from experiments.report.tradeoff import COST, comparable, ends, middle, optimal

FLOOR = 1e-3  # nats below which nothing is told apart
COLORS = {"one pass of the guide": "#0072b2", "search for a row": "#d55e00"}
FONT = 8


def costs(records):
    """Shortfall against seconds for new data, both on log axes; None where costs are not known.

    One marker a guide, with its name; a line joins those that no other beats in both.
    """
    found = comparable(rows(records))
    if not found:
        return None
    models = list(dict.fromkeys(row["model"] for row in found))
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure = Figure(figsize=(max(8, 4 * columns), 3.4 * lines + 0.7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    groups = [[row for row in found if row["model"] == model] for model in models]
    for axis, model, group in zip(axes, models, groups, strict=False):
        _panel(axis, group)
        axis.set(title=model)
    for axis in axes[len(models) :]:
        axis.set_visible(False)
    _words(figure, axes[0])
    figure.draw_without_rendering()  # labels are placed where the markers will stand
    for axis, group in zip(axes, groups, strict=False):
        _label(axis, group, canvas.get_renderer())
    return figure


def _panel(axis, group):
    axis.set(xscale="log", yscale="log")
    points = [_point(row) for row in group]
    best = [points[place] for place in optimal(points)]
    axis.plot(*zip(*best, strict=True), color="0.7", linewidth=1, zorder=1)
    for row, point in zip(group, points, strict=True):
        color = _color(row)
        axis.errorbar(*point, **_bars(row, point), fmt="none", color=color, linewidth=1.5)
        axis.plot(*point, "o", color=color, markersize=6)
        axis.plot(point[0], _gap(row), "o", color=color, markersize=4, fillstyle="none", alpha=0.6)
    costs, losses = zip(*points, strict=True)
    axis.set(xlim=(min(costs) / 4, max(costs) * 4), ylim=(FLOOR / 2, max(*losses, 10 * FLOOR) * 4))
    ticks = [tick for tick in (FLOOR, 0.01, 0.1, 1.0, 10.0, 100.0) if tick < 4 * max(losses)]
    axis.set_yticks(ticks, [f"≤ {FLOOR:g}", *(f"{tick:g}" for tick in ticks[1:])])


def _point(row):
    """(microseconds, nats) where a guide's marker stands, never below the floor."""
    return row[COST][0], max(middle(row, "shortfall"), FLOOR)


def _gap(row):
    return max(middle(row, "total gap"), FLOOR)


def _bars(row, point):
    """Errors over seeds, or the interval where the evidence is known as one."""
    low, high = ends(row, "shortfall")
    se = (row["shortfall"] or (0, 0))[1] or 0
    low, high = max(low - se, FLOOR), max(high + se, FLOOR)
    beside = min(row[COST][1] or 0, 0.9 * point[0])
    return {"xerr": beside, "yerr": [[max(point[1] - low, 0)], [max(high - point[1], 0)]]}


def _color(row):
    return list(COLORS.values())[row["searched"]]


def _words(figure, axis):
    for name, color in COLORS.items():
        axis.plot([], [], "o", color=color, label=name)
    axis.plot([], [], "o", color="0.4", fillstyle="none", markersize=4, label="gap alone")
    axis.plot([], [], color="0.7", label="no other guide is both better and cheaper")
    figure.legend(loc="outside upper center", ncols=4)
    figure.supxlabel("microseconds until a new datum has its q", fontsize="medium")
    words = "shortfall, nats a held-out datum (± se over seeds)"
    figure.supylabel(words, fontsize="medium")


def _label(axis, group, renderer):
    """Put each guide's name beside its marker, or where there is room, with a line to it."""
    offsets, lined = place(_crowd(axis, group, renderer))
    offsets = offsets / renderer.points_to_pixels(1.0)
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
    for row, offset, needed in zip(group, offsets, lined, strict=True):
        text = axis.annotate(
            row["guide"],
            _point(row),
            offset,
            textcoords="offset points",
            arrowprops=line if needed else None,
        )
        text.set(ha="center", va="center", color=_color(row), fontsize=FONT, in_layout=False)


def _crowd(axis, group, renderer):
    """What stands in a panel, and how large its names will be."""
    scale, pixels = renderer.points_to_pixels(1.0), axis.transData.transform
    return Crowd(
        points=pixels([_point(row) for row in group]),
        sizes=np.array([_size(axis, row["guide"], renderer) for row in group]) + 2 * scale,
        hollow=pixels([(row[COST][0], _gap(row)) for row in group]),
        bars=np.array([bar for row in group for bar in _bar_boxes(axis, row)]),
        inside=axis.bbox.extents,
        scale=scale,
    )


def _bar_boxes(axis, row):
    """The places of a marker's error bars."""
    (x, y), bars = _point(row), _bars(row, _point(row))
    ((below,), (above,)), beside = bars["yerr"], bars["xerr"]
    ends = [((x - beside, y), (x + beside, y)), ((x, y - below), (x, y + above))]
    return [axis.transData.transform(pair).flatten() for pair in ends]


def _size(axis, name, renderer):
    """(width, height) of a label in pixels."""
    text = axis.text(0, 0, name, fontsize=FONT, transform=None)
    size = text.get_window_extent(renderer).size
    text.remove()
    return size

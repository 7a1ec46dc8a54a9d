"""Figures of a comparison: all that is known is in them, and no words stand on others."""

import itertools

import matplotlib as mpl
import pytest
import torch
from cost_records import seeds
from matplotlib.backends.backend_agg import FigureCanvasAgg

import guides
from experiments import records
from experiments.report import fitted
from experiments.report.bars import gap_bars
from experiments.report.figures import STYLE, bounds, looks
from experiments.report.readme import RESULTS

DRAWN = [bounds, gap_bars]


def committed(name):
    return records.read(RESULTS / name / "records.jsonl")


def drawn(draw, found):
    """The figure, laid out, and its renderer."""
    with mpl.rc_context(STYLE):
        figure = draw(found)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return figure, canvas.get_renderer()


def words_of(figure):
    """Titles, names of axes and the legend: all that stands beside the panels."""
    found = [*figure.legends, *(text for text in (figure._supxlabel, figure._suptitle) if text)]
    for axis in figure.axes:
        if axis.get_visible():
            found += [axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]
    return [one for one in found if not hasattr(one, "get_text") or one.get_text()]


def one_guide(found):
    return [one for one in found if one["label"] == "vae-amortized"]


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("name", ["guides-cpu", "card-cpu", "one guide"])
def test_words_stand_on_no_words_and_no_panel(draw, name):
    found = one_guide(committed("card-cpu")) if name == "one guide" else committed(name)
    figure, renderer = drawn(draw, found)
    words = [one.get_window_extent(renderer) for one in words_of(figure)]
    panels = [axis.bbox for axis in figure.axes if axis.get_visible()]
    pairs = [*itertools.combinations(words, 2), *itertools.product(words, panels)]
    assert words
    assert not any(one.overlaps(other) for one, other in pairs)
    assert min(panel.width for panel in panels) > 1.5 * figure.dpi
    assert figure.get_figwidth() <= 13


def test_registered_guides_are_told_apart():
    found = looks(guides.names())
    assert list(found) == guides.names()
    assert len({(look["color"], look["linestyle"]) for look in found.values()}) == len(found)
    assert {look["linestyle"] for look in looks(["b", "a"]).values()} == {"-"}


def test_one_legend_names_every_guide():
    figure, _ = drawn(bounds, committed("guides-cpu"))
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == sorted({one["config"]["guide"] for one in committed("guides-cpu")})
    assert not any(axis.get_legend() for axis in figure.axes)


def shown_gaps(found):
    """{model: {guide: the number beside its bar}}."""
    figure, _ = drawn(gap_bars, found)
    panels = {}
    for axis in figure.axes:
        if axis.get_visible():
            names = [label.get_text() for label in axis.get_yticklabels()]
            numbers = [text.get_text() for text in axis.texts]
            panels[axis.get_title(loc="left")] = dict(zip(names, numbers, strict=True))
    return panels


def test_every_gap_has_a_bar():
    panels = shown_gaps(committed("guides-cpu"))
    labels = {f"{model}-{guide}" for model, group in panels.items() for guide in group}
    assert labels == {one["label"] for one in committed("guides-cpu")}
    assert panels["vae_10"]["importance"].startswith("[0.254, ")
    assert panels["vae"]["laplace"] == "1.440"


def test_parts_of_a_bar_add_up_to_its_number():
    found = seeds("m", "amortized", -20.3, -20, approximation=0.1, amortization=0.2)
    found += seeds("m", "mean_field", -20.2, -20, approximation=0.2, amortization=0.0, width=0.05)
    figure, _ = drawn(gap_bars, found)
    family, encoder, unsplit, more = figure.axes[0].containers[:4]
    widths = [[bar.get_width() for bar in part] for part in (family, encoder, unsplit, more)]
    expected = [[0.1, 0.2], [0.2, 0.0], [0.0, 0.0], [0.0, 0.05]]
    for part, values in zip(widths, expected, strict=True):
        assert part == pytest.approx(values, abs=1e-9)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.300", "[0.200, 0.250]"]


def test_guides_without_a_known_gap_are_named():
    found = seeds("m", "mean_field", -20.2, -20) + seeds("n", "flow", -20.2, -20)
    for one in found[5:]:
        one["measures"]["gaps"] = {"amortization_gap_per_datum": 0.1}
    figure, _ = drawn(gap_bars, found)
    assert "No evidence, so no bar: n flow." in figure._supxlabel.get_text()


def test_the_exact_posterior_alone_has_no_figure_of_gaps():
    exact = seeds("m", "oracle", -20, -20)
    assert gap_bars(exact) is None
    assert gap_bars(exact + seeds("m", "flow", -20.1, -20)) is not None


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_a_plane_has_few_panels_in_a_line(count):
    figure, axes = fitted._plane_panels(count)
    assert sum(axis.get_visible() for axis in axes) == count
    assert figure.get_figwidth() < 14
    named = [axis for axis in axes[:count] if axis.get_xlabel()]
    assert len(named) == min(count, fitted.ABREAST)  # the lowest of each column


@pytest.mark.parametrize("count", [2, 25])
def test_a_title_stands_above_the_pictures(count):
    lines = {f"reconstruction,\n{i}": torch.rand(12, 64) for i in range(count)}
    figure, renderer = drawn(lambda found: fitted._sheet(found, (8, 8), 1.0, "title"), lines)
    title = figure._suptitle.get_window_extent(renderer)
    assert all(axis.get_window_extent(renderer).y1 < title.y0 for axis in figure.axes)

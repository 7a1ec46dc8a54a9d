"""The figures: cost against batch, number of rows, and seeds."""

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.benchmarks.bounds import Table
from experiments.benchmarks.contenders import CONTENDERS, title
from experiments.report.figures import STYLE

COLORS = dict(zip(CONTENDERS, mpl.color_sequences["tab20"], strict=False))
MARKS = {"handwritten": "s", "pyro": "v", "numpyro": "^"}


def draw(folder, result):
    """Write what the run allows into the folder: batch.png, seeds.png, rows.png."""
    base = [Table(group) for group in result["base"]]
    folder.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure in (
            ("batch", against_batch([t for t in base if t.case.model == "vae"])),
            ("seeds", against_seeds(base)),
            ("rows", against_rows(result["tables"])),
        ):
            if figure is not None:
                figure.savefig(folder / f"{name}.png")


def against_batch(tables):
    """A panel per guide: milliseconds of a step of the VAE at its three sizes."""
    if not tables:
        return None
    guides = list(dict.fromkeys(table.case.guide for table in tables))
    figure = Figure(figsize=(4.5 * len(guides) + 2, 4))
    axes = figure.subplots(1, len(guides), squeeze=False, sharey=True)[0]
    for axis, guide in zip(axes, guides, strict=True):
        own = sorted((t for t in tables if t.case.guide == guide), key=lambda t: t.case.batch_size)
        for name in CONTENDERS:
            found = [(t.case.batch_size, t.row(name)) for t in own]
            _line(axis, name, found)
        limits = [table.limit for table in own]
        axis.plot([t.case.batch_size for t in own], limits, "k:", label="limit")
        sizes = [f"{t.case.batch_size}\nH = {t.case.hidden[0]}" for t in own]
        axis.set_xticks([t.case.batch_size for t in own], sizes)
        axis.minorticks_off()
        axis.set(title=guide, xlabel="batch")
    axes[0].set_ylabel("milliseconds a step")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def against_seeds(tables):
    """A panel per case: milliseconds of a step of all seeds together, over one seed's."""
    tables = [t for t in tables if any(r.case.seeds > 1 and not r.absent for r in t.rows)]
    if not tables:
        return None
    columns = min(len(tables), 4)
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines))
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, table in zip(axes, tables, strict=False):
        counts = sorted({row.case.seeds for row in table.rows})
        for name in CONTENDERS:
            found = [(count, table.row(name, seeds=count)) for count in counts]
            if sum(row is not None for _, row in found) > 1:
                _line(axis, name, found)
        hand = table.fastest(["handwritten"])
        if hand is not None:
            loops = [count * hand.median for count in counts]
            axis.plot(counts, loops, "k:", label="by hand, one after another")
        axis.set_xticks(counts, map(str, counts))
        axis.set_title(table.case.name.replace(", ", "\n", 1), fontsize=8)
    for axis in axes[len(tables) :]:
        axis.set_axis_off()
    figure.supxlabel("seeds at once")
    figure.supylabel("milliseconds a step")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower right", fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def against_rows(group):
    """Milliseconds of a step of mean_field against the table's rows."""
    if group is None or all(row.absent for row in group["rows"]):
        return None
    table = Table(group)
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    counts = sorted({row.case.num_data for row in table.rows})
    for name in CONTENDERS:
        _line(axis, name, [(count, table.row(name, num_data=count)) for count in counts])
    axis.set(xlabel="rows of the table", ylabel="milliseconds a step", title=table.case.name)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _line(axis, name, found):
    """A contender's line on logarithmic axes, nothing where it has no numbers."""
    points = [(x, row.median) for x, row in found if row is not None and row.absent is None]
    if points:
        mark = MARKS.get(name.split("_")[0], "o")
        axis.loglog(*zip(*points, strict=True), mark + "-", label=title(name), color=COLORS[name])

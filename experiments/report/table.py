"""The tables of a comparison: a row per model and guide, means and errors over seeds."""

import csv
import io
import math
import re

from experiments.report.captions import (
    bounds_caption,
    costs_caption,
    densities_caption,
    diagnostics_caption,
)
from experiments.report.columns import (
    BOUNDS,
    COLUMNS,
    COSTS,
    DENSITIES,
    DIAGNOSTICS,
    INTERVALS,
    READING,
    SHORTFALL,
    by_cost,
    get,
    guide_of,
    model_of,
    rows,
    weighted,
)
from experiments.report.page import Cell, Table
from experiments.report.tradeoff import ends

NAMES = ("model", "guide")
PERCENT = ("label error", "k > 0.7", "50 % covers", "90 % covers", "ranks refused")
# Shown where a model has them.
RARE = (
    *("label error", "purity", "parameters", "test NLL", "± over data", "seconds for 100 draws"),
    *("ms a step", "µs per new datum", "MiB", *SHORTFALL),
)
# Without ±: the seeds of a program share one clock and one graph.
ALONE = ("parameters", "seconds", "ms a step", "MiB")
DIGITS = {
    "parameters": 0,
    "seconds": 1,
    "k > 0.7": 2,
    "median k": 2,
    "ms a step": 2,
    "µs per new datum": 1,
    "MiB": 2,
}


def tables(records):
    """The Tables of a comparison, each with a caption that says what its numbers are."""
    found, measure = rows(records), records[0]["config"]["measure"]
    every = []
    if measure.get("costs"):
        caption = costs_caption(by_reason(records)) + _step_words(records)
        every.append(_table("What guides cost", by_cost(found), COSTS, caption))
    if measure.get("densities"):
        every.append(_table("Densities", found, DENSITIES, densities_caption(records)))
    if not measure.get("densities") or measure["search"]:
        caption = bounds_caption(records) + _weighted_words(records)
        every.append(_table("Bounds and gaps", found, BOUNDS, caption))
        more = _simulated_words(records) + _weighted_words(records)
        every.append(_table("Diagnostics", found, DIAGNOSTICS, diagnostics_caption(records) + more))
    return every


def _step_words(records):
    """What a step is that milliseconds are of."""
    counts = sorted({get(r, ("cost", "seeds_together")) for r in records} - {None})
    seeds = f", here {', '.join(map(str, counts))}" if counts else ""
    return f" ms a step: {READING['ms a step']}{seeds}."


def _weighted_words(records):
    """Which bound the numbers of guides are that weigh another's draws, where there are some."""
    found = dict.fromkeys((guide_of(r), *weighted(r)) for r in records if weighted(r))
    return "".join(
        f" {guide}: ELBO, gap and k are those of the bound of {count} draws of {base}, weighted by "
        "importance; KL(q, posterior) is at most its gap."
        for guide, count, base in found
    )


def _simulated_words(records):
    """What ± of coverage and ranks leaves out, where there are some."""
    if all(get(r, DIAGNOSTICS["ranks refused"]) is None for r in records):
        return ""
    count = records[0]["config"]["measure"]["simulations"]
    half, most = (100 * math.sqrt(p * (1 - p) / count) for p in (0.5, 0.9))
    return (
        " The data are simulated by the same random numbers for every seed, so that ± of coverage "
        "and of ranks refused leaves out the noise that they share: the binomial standard error of "
        f"one coordinate's coverage is {half:.1f} % at 50 % and {most:.1f} % at 90 %."
    )


def by_reason(records):
    """The records, with the guides that are unsuited for one reason and the same models as one.

    So a caption names a reason once.
    """
    models, joined = {}, {}
    for record in records:
        for guide, why in record.get("unsuited", {}).items():
            models.setdefault((guide, reason(guide, why)), {})[model_of(record)] = None
    for (guide, why), own in models.items():
        joined.setdefault((why, tuple(own)), []).append(guide)

    def unsuited(model):
        return {_and(names): why for (why, own), names in joined.items() if model in own}

    return [record | {"unsuited": unsuited(model_of(record))} for record in records]


def reason(guide, why):
    """Why a guide is not suitable without the names of guide, model and latent, and without advice.

    guide: its name, with which most reasons begin; why: one sentence.
    """
    said = re.sub(r" \([^()]*\)", "", why).partition(";")[0]
    begins = rf"^(guide )?'?{re.escape(guide)}'?"
    said = re.sub(rf"{begins} does not suit latent [^:]*: it ", "a latent ", said)
    said = re.sub(rf"{begins} does not suit [^:]*, which ", "the model ", said)
    return re.sub(rf"{begins} (does not suit|is|does not run beside) [^:]*: |{begins} ", "", said)


def _and(names):
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def failures(records):
    """A sentence for each run that failed."""
    return [f"{r['run']} failed: {r['error']}" for r in records if r["status"] != "ok"]


def markdown_table(title, records):
    """The tables as Markdown, with a caption that says what their numbers are."""
    parts = [text for table in tables(records) for text in (markdown(table), table.caption)]
    notes = [f"- {sentence}" for sentence in failures(records)]
    return "\n\n".join([f"**{title}**", *parts, *notes]) + "\n"


def markdown(table):
    """The head and the rows of a Table as Markdown; columns of Cells stand on the right."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.head)
    rule = ["---:" if any(isinstance(c, Cell) for c in column) else "---" for column in columns]
    lines = [[getattr(cell, "text", cell) for cell in line] for line in table.rows]
    return "\n".join(map(_line, [table.head, rule, *lines]))


def csv_table(records):
    """The table as CSV: mean and se of every column, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{column} {end}" for column in INTERVALS for end in ("lower", "upper")]
    columns = [*_shown(rows(records), {**COLUMNS, **SHORTFALL}), *ends]
    names = [f"{_identifier(column)}{end}" for column in columns for end in ("", "_se")]
    ways = ["test_NLL_by"] if "test NLL" in columns else []
    writer.writerow(["model", "guide", *names, *ways, "seeds_ok", "seeds"])
    for row in rows(records):
        numbers = [number for column in columns for number in row[column] or ("", "")]
        by = ["importance" if row["bounded"] else "exact"] * len(ways)
        writer.writerow([row["model"], row["guide"], *numbers, *by, row["ok"], row["all"]])
    return out.getvalue()


def _identifier(column):
    words = column.replace("± over data", "test NLL se over data").replace(">", "above")
    words = words.replace("µs", "microseconds").replace("MiB", "memory MiB")
    return words.replace("%", "percent").replace("-", "_").replace(" ", "_")


def _shown(found, columns):
    """The columns but for the rare ones that no row has."""
    names = {c: (c, f"{c} lower") for c in columns}
    known = {c for c in columns for row in found for n in names[c] if row.get(n) is not None}
    return [c for c in columns if c not in RARE or c in known]


def _table(title, found, columns, caption):
    columns = _shown(found, columns)
    lines = [
        [*(row[name] for name in NAMES), *(_cell(row, column) for column in columns), _seeds(row)]
        for row in found
    ]
    return Table(title, [*NAMES, *columns, "seeds"], lines, caption)


def _cell(row, column):
    """A column of a row, sorted by its mean or by the middle of an interval."""
    known = ends(row, column)
    return Cell(cell(row, column), None if known is None else sum(known) / 2)


def _seeds(row):
    return Cell(f"{row['ok']}/{row['all']}", row["ok"])


def cell(row, column):
    """A column of a row as text: mean and error over seeds, an interval, or what is not known."""
    if row[column] is None:
        low, high = row.get(f"{column} lower"), row.get(f"{column} upper")
        if low is None:
            return "unknown" if column in BOUNDS or column in SHORTFALL else "–"
        return f"[{as_text(low[0], 3)}, {as_text(high[0], 3)}]"
    mean, se = row[column]
    factor, sign = (100, " %") if column in PERCENT else (1, "")
    text = as_text(factor * mean, digits := 1 if column in PERCENT else DIGITS.get(column, 3))
    text = f"≤ {text}" if column == "test NLL" and row["bounded"] else text
    alone = se is None or column in ALONE
    return text + sign if alone else f"{text} ± {factor * se:.{digits}f}{sign}"


def as_text(value, digits):
    """A number with so many digits after the point, and no minus before zeros."""
    zero = f"{0:.{digits}f}"
    return f"{value:,.{digits}f}".replace(f"-{zero}", zero)


def _line(cells):
    return "| " + " | ".join(cells) + " |"

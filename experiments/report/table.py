"""The comparison as Markdown and CSV: a row per model and guide, means and errors over seeds."""

import csv
import io
import math
import statistics

COLUMNS = {
    "train ELBO": ("measures", "train", "elbo_per_datum"),
    "held-out ELBO": ("measures", "held_out", "elbo_per_datum"),
    "log evidence": ("measures", "held_out", "log_evidence_per_datum"),
    "total gap": ("measures", "held_out", "total_gap_per_datum"),
    "approximation gap": ("measures", "held_out", "approximation_gap_per_datum"),
    "amortization gap": ("measures", "held_out", "amortization_gap_per_datum"),
    "seconds": ("cost", "seconds"),
}


def rows(records):
    """One dict per model and guide: names, seeds, and {column: (mean, se) or None}.

    se is the spread over seeds divided by the root of their number; None for one seed.
    """
    labels = list(dict.fromkeys(record["label"] for record in records))
    return [_row([r for r in records if r["label"] == label]) for label in labels]


def markdown_table(title, records):
    """The table as Markdown, with a caption that says what its numbers are."""
    head = ["model", "guide", *COLUMNS, "seeds"]
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(COLUMNS) + 1)])]
    for row in rows(records):
        cells = [_cell(row[column], column) for column in COLUMNS]
        lines.append(_line([row["model"], row["guide"], *cells, f"{row['ok']}/{row['all']}"]))
    failed = [r for r in records if r["status"] != "ok"]
    notes = [f"- {r['run']} failed: {r['error']}" for r in failed]
    return "\n\n".join([f"**{title}**", "\n".join(lines), caption(records), *notes]) + "\n"


def caption(records):
    """What the numbers are, and how they came about."""
    first = records[0]
    done = [r for r in records if r["status"] == "ok"]
    estimators = sorted({r["config"]["fit"]["estimator"] for r in records})
    steps = sorted({r["cost"]["steps"] for r in done}) or ["no"]
    words = "Steps of SVI a run: " + ", ".join(f"{n:,}" if n != "no" else n for n in steps)
    errors = [r["measures"]["held_out"].get("evidence_error_max") for r in done]
    error = max((e for e in errors if e is not None), default=None)
    stated = "" if error is None else f"Largest stated error of an evidence: {error:.4f}. "
    met = sum(bool(r["measures"]["held_out"]["row_converged"]) for r in done)
    return (
        "Nats a datum; log evidence and gaps on held-out data under each fit's own parameters; "
        "± is the standard error over seeds. total gap = log evidence − ELBO = approximation gap "
        "+ amortization gap. A table has no answer for new data, so its held-out rows are fitted "
        f"and its amortization gap is 0 by definition. {stated}"
        f"The row fits met their rule in {met} of {len(done)} runs. {words}; "
        f"seconds are those of training. Estimators: {', '.join(estimators)}. "
        f"Device: {first['environment']['device']} "
        f"({first['config']['device']})."
    )


def csv_table(records):
    """The table as CSV: mean and se of every column, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{column.replace(' ', '_')}{end}" for column in COLUMNS for end in ("", "_se")]
    writer.writerow(["model", "guide", *names, "seeds_ok", "seeds"])
    for row in rows(records):
        numbers = [number for column in COLUMNS for number in row[column] or ("", "")]
        writer.writerow([row["model"], row["guide"], *numbers, row["ok"], row["all"]])
    return out.getvalue()


def _row(group):
    done = [record for record in group if record["status"] == "ok"]
    row = {
        "label": group[0]["label"],
        "model": group[0]["label"].removesuffix(f"-{group[0]['config']['guide']}"),
        "guide": group[0]["config"]["guide"],
        "ok": len(done),
        "all": len(group),
    }
    return row | {column: _mean(done, path) for column, path in COLUMNS.items()}


def _mean(records, path):
    """(mean, se) of a field over records, or None where it is in none."""
    values = [value for value in (_get(record, path) for record in records) if value is not None]
    if not values:
        return None
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), se


def _get(record, path):
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _cell(mean_and_se, column):
    if mean_and_se is None:
        return "unknown"
    mean, se = mean_and_se
    digits = 1 if column == "seconds" else 3
    text = f"{mean:.{digits}f}".replace("-0.000", "0.000")
    return text if se is None else f"{text} ± {se:.{digits}f}"


def _line(cells):
    return "| " + " | ".join(cells) + " |"

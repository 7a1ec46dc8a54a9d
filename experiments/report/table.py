"""The comparison as Markdown and CSV: a row per model and guide, means and errors over seeds."""

import csv
import io
import math
import statistics
from pathlib import Path

BOUNDS = {
    "train ELBO": ("measures", "train", "elbo_per_datum"),
    "held-out ELBO": ("measures", "held_out", "elbo_per_datum"),
    "log evidence": ("measures", "gaps", "log_evidence_per_datum"),
    "total gap": ("measures", "gaps", "total_gap_per_datum"),
    "approximation gap": ("measures", "gaps", "approximation_gap_per_datum"),
    "amortization gap": ("measures", "gaps", "amortization_gap_per_datum"),
    "training gap": None,  # against the other guides of the model, see _training_gaps
    "seconds": ("cost", "seconds"),
}
DIAGNOSTICS = {
    "generalization gap": ("measures", "held_out", "generalization_gap_per_datum"),
    "label error": ("measures", "held_out", "label_error"),
    "purity": ("measures", "held_out", "purity"),
    "k > 0.7": ("measures", "pareto", "share"),
    "median k": ("measures", "pareto", "median"),
    "50 % covers": ("measures", "calibration", "coverage_50"),
    "90 % covers": ("measures", "calibration", "coverage_90"),
    "ranks refused": ("measures", "calibration", "refused"),
}
DENSITIES = {
    "parameters": ("measures", "density", "parameters"),
    "train ELBO": BOUNDS["train ELBO"],
    "test NLL": ("measures", "density", "nll_per_datum"),
    "± over data": ("measures", "density", "nll_per_datum_se"),
    "seconds": BOUNDS["seconds"],
    "seconds for 100 draws": ("measures", "density", "seconds_for_100_draws"),
}
PERCENT = ("label error", "k > 0.7", "50 % covers", "90 % covers", "ranks refused")
# Shown where a model has them.
RARE = ("label error", "purity", "parameters", "test NLL", "± over data", "seconds for 100 draws")
DIGITS = {"parameters": 0, "seconds": 1, "k > 0.7": 2, "median k": 2}
COLUMNS = BOUNDS | DIAGNOSTICS | DENSITIES
SPLIT = "amortization_gap_per_datum"
INTERVALS = ("log evidence", "total gap", "approximation gap")


def rows(records):
    """One dict per model and guide: names, seeds, and {column: (mean, se) or None}.

    se is the spread over seeds divided by the root of their number; None for one seed.  The columns
    in INTERVALS have "... lower" and "... upper" beside, for an evidence between two bounds.
    """
    labels = list(dict.fromkeys(record["label"] for record in records))
    found = [_row([r for r in records if r["label"] == label]) for label in labels]
    for row in found:
        row["training gap"] = _training_gap(row, [r for r in found if r["model"] == row["model"]])
    return found


def markdown_table(title, records):
    """The tables as Markdown, with a caption that says what their numbers are."""
    found = rows(records)
    failed = [r for r in records if r["status"] != "ok"]
    notes = [f"- {r['run']} failed: {r['error']}" for r in failed]
    parts = [f"**{title}**"]
    measure = records[0]["config"]["measure"]
    if measure.get("densities"):
        parts += [_markdown(found, DENSITIES), densities_caption(records)]
    if not measure.get("densities") or measure["search"]:
        parts += [_markdown(found, BOUNDS), caption(records)]
        parts += [_markdown(found, DIAGNOSTICS), diagnostics_caption(records)]
    return "\n\n".join([*parts, *notes]) + "\n"


def caption(records):
    """What the numbers of the first table are, and how they came about."""
    done = [r for r in records if r["status"] == "ok"]
    errors = [_get(r, ("measures", "gaps", "evidence_error_max")) for r in done]
    joint = sorted({r["config"]["model"] for r in done if "held_out" not in r["measures"]})
    shared = (
        f"The rows of {', '.join(joint)} share a latent: evidence and gaps there are those of the "
        "data fitted to, and so is the amortization gap of a table. "
        if joint
        else ""
    )
    error = max((e for e in errors if e is not None), default=None)
    stated = "" if error is None else f"Largest stated error of an evidence: {error:.4f}. "
    return (
        "Nats a datum; log evidence and gaps on held-out data under each fit's own parameters; "
        "± is the standard error over seeds. total gap = log evidence − ELBO = approximation gap "
        "+ amortization gap. training gap: by how much the model's exact evidence on the training "
        "data stays below that of the guide that trained it best. A table has no answer for new "
        "data, so its held-out rows are fitted and its amortization gap is 0 by definition. "
        f"{shared}{stated}{_interval_words(records)}{_unsplit_words(records)}"
        f"{_search_words(done)}{training_words(records)}"
    )


def training_words(records):
    """How the runs were trained, and on what."""
    first = records[0]
    done = [r for r in records if r["status"] == "ok"]
    estimators = sorted({r["config"]["fit"]["estimator"] for r in records})
    steps = sorted({r["cost"]["steps"] for r in done}) or ["no"]
    words = "Steps of SVI a run: " + ", ".join(f"{n:,}" if n != "no" else n for n in steps)
    engines = sorted({r["cost"].get("engine", "eager") for r in done})
    compiling = max((r["cost"].get("compile_seconds", 0.0) for r in done), default=0.0)
    extra = (
        f", beside recording and compilation of up to {compiling:.0f} s a program"
        if compiling
        else ""
    )
    return (
        f"{words}; seconds are those of training, a program's shared by its seeds{extra}. "
        f"Engines: {', '.join(engines)}. Estimators: {', '.join(estimators)}. "
        f"Device: {first['environment']['device']} ({first['config']['device']})."
    )


def _search_words(records):
    """How the searches for the best of the family ended, where there were some."""
    latent = [r for r in records if r["config"]["guide"] != "empty"]
    searches = [_get(r, ("measures", "gaps", "row_converged")) for r in latent]
    searches = [met for met in searches if met is not None]
    if not searches:
        return ""
    return (
        f"The searches for the best of the family met their rule in {sum(searches)} of "
        f"{len(searches)} runs. "
    )


def densities_caption(records):
    """What the numbers of the table of densities are."""
    draws = records[0]["config"]["measure"]["nll_draws"]
    weighted = (
        f"; but for ≤: there by importance weighting with {draws:,} draws, which is too high on "
        "average"
        if any(_get(r, NLL_BY) == "importance" for r in records)
        else ""
    )
    return (
        "parameters: those of the model, its guide's left out. test NLL: negative log likelihood "
        f"of the held-out data, nats a datum, by the exact evidence{weighted}. ± over data: its "
        "standard error as a mean over held-out data; another ± is the standard error over seeds. "
        "seconds for 100 draws: of new rows from the model, all at once; autoregressive models "
        f"draw entry by entry. {training_words(records)}"
    )


NLL_BY = ("measures", "density", "nll_by")


def _interval_words(records):
    """What an evidence in brackets is, where there is one."""
    if not any(_get(r, ("measures", "gaps", "log_evidence_lower_per_datum")) for r in records):
        return ""
    counts = {_get(r, ("measures", "gaps", "interval_rows")) for r in records} - {None}
    return (
        f"[a, b]: not known exactly; measured on {', '.join(map(str, sorted(counts)))} of these "
        "data, where a is a lower bound on average, by the better of importance weighting and "
        "annealing, and b adds the width that bidirectional Monte Carlo finds on data simulated "
        "from the fit, and two standard errors of it; the other columns are over all data. "
    )


def diagnostics_caption(records):
    """What the numbers of the second table are; – where a measure does not apply."""
    measure = records[0]["config"]["measure"]
    return (
        "generalization gap: train ELBO − held-out ELBO; a table's training rows are as SVI left "
        f"them, its held-out rows searched to convergence. {_label_words(records)}"
        f"{_purity_words(records)}"
        "k: Pareto shape of log p − log q of "
        f"{measure['pareto_draws']:,} draws a datum; above 0.7 the guide cannot be mended by "
        "importance sampling; left out for discrete latents of few values, whose weights are "
        "bounded. 50 % and 90 % covers: how often the guide's central interval holds the latent "
        f"that made the datum, over {measure['simulations']:,} data simulated from the fit. ranks "
        "refused: share of the fits whose ranks, of any latent or of the log joint density, leave "
        "the simultaneous band that an exact guide leaves once in 20."
        + "".join(f" {run} has no {name}: {why}." for run, name, why in _skipped(records))
    )


def _label_words(records):
    """What a label error is, where there is one."""
    if not any(_get(r, DIAGNOSTICS["label error"]) is not None for r in records):
        return ""
    return (
        "label error: share of the held-out data whose likeliest label under the guide is not the "
        "true one. "
    )


def _unsplit_words(records):
    """Which guides have no rows a datum, where there are some."""
    gaps = {r["label"]: _get(r, ("measures", "gaps")) or {} for r in records}
    labels = [n for n, found in gaps.items() if found and SPLIT not in found]
    if not labels:
        return ""
    if not records[0]["config"]["measure"].get("search", True):
        return "The best of the family was not searched for, so that no encoder's gap is split. "
    return f"{', '.join(labels)}: no parameters of q a datum, so that the gap is not split. "


def _purity_words(records):
    """What purity is, where there is one."""
    if all(_get(r, DIAGNOSTICS["purity"]) is None for r in records):
        return ""
    return (
        "purity: share of held-out data whose label is the commonest in their cluster, the value "
        "of the finite latent that the guide holds likeliest. "
    )


def _skipped(records):
    """(label, measure, reason) of what was skipped, once a label."""
    found = {
        (r["label"], name): why
        for r in records
        for name, why in (_get(r, ("measures", "skipped")) or {}).items()
    }
    return [(*key, why) for key, why in found.items()]


def csv_table(records):
    """The table as CSV: mean and se of every column, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{column} {end}" for column in INTERVALS for end in ("lower", "upper")]
    columns = [*_shown(rows(records), COLUMNS), *ends]
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
    return words.replace("%", "percent").replace("-", "_").replace(" ", "_")


def _row(group):
    done = [record for record in group if record["status"] == "ok"]
    guide = Path(group[0]["config"]["guide"]).stem  # a user's own is a file
    row = {
        "label": group[0]["label"],
        "model": group[0]["label"].removesuffix(f"-{guide}"),
        "guide": guide,
        "ok": len(done),
        "all": len(group),
        "evidence": {r["seed"]: _get(r, TRAIN_EVIDENCE) for r in done},
        "bounded": any(_get(r, NLL_BY) == "importance" for r in done),
    }
    row |= {column: _mean(done, path) for column, path in COLUMNS.items() if path}
    for column in INTERVALS:
        path = BOUNDS[column]
        for end in ("lower", "upper"):
            name = path[-1].replace("_per_datum", f"_{end}_per_datum")
            row[f"{column} {end}"] = _mean(done, (*path[:-1], name))
    return row


TRAIN_EVIDENCE = ("measures", "train", "log_evidence_per_datum")


def _training_gap(row, group):
    """(mean, se) over seeds of the best guide's evidence minus this one's; None if unknown.

    The seeds are paired: the best guide is the one whose mean evidence is highest.
    """
    known = [r for r in group if r["evidence"] and None not in r["evidence"].values()]
    if row not in known:
        return None
    best = max(known, key=lambda r: statistics.fmean(r["evidence"].values()))
    common = row["evidence"].keys() & best["evidence"].keys()
    return _mean_and_se([best["evidence"][s] - row["evidence"][s] for s in sorted(common)])


def _mean(records, path):
    """(mean, se) of a field over records, or None where it is in none."""
    values = [value for value in (_get(record, path) for record in records) if value is not None]
    return _mean_and_se([float(value) for value in values])  # "inf" is how JSON has infinity


def _mean_and_se(values):
    if not values:
        return None
    if math.inf in values:
        return math.inf, None
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), se


def _get(record, path):
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _shown(found, columns):
    """The columns but for the rare ones that no row has."""
    return [c for c in columns if c not in RARE or any(row[c] is not None for row in found)]


def _markdown(found, columns):
    columns = _shown(found, columns)
    head = ["model", "guide", *columns, "seeds"]
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(columns) + 1)])]
    for row in found:
        cells = [_cell(row, column) for column in columns]
        lines.append(_line([row["model"], row["guide"], *cells, f"{row['ok']}/{row['all']}"]))
    return "\n".join(lines)


def _cell(row, column):
    if row[column] is None:
        low, high = row.get(f"{column} lower"), row.get(f"{column} upper")
        if low is None:
            return "unknown" if column in BOUNDS else "–"
        return f"[{as_text(low[0], 3)}, {as_text(high[0], 3)}]"
    mean, se = row[column]
    factor, sign = (100, " %") if column in PERCENT else (1, "")
    text = as_text(factor * mean, digits := 1 if column in PERCENT else DIGITS.get(column, 3))
    text = f"≤ {text}" if column == "test NLL" and row["bounded"] else text
    alone = se is None or column == "parameters"
    return text + sign if alone else f"{text} ± {factor * se:.{digits}f}{sign}"


def as_text(value, digits):
    """A number with so many digits after the point, and no minus before zeros."""
    zero = f"{0:.{digits}f}"
    return f"{value:,.{digits}f}".replace(f"-{zero}", zero)


def _line(cells):
    return "| " + " | ".join(cells) + " |"

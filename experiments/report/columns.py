"""What the tables show of records: where each column stands, means and errors over seeds."""

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
COLUMNS = BOUNDS | DIAGNOSTICS | DENSITIES
INTERVALS = ("log evidence", "total gap", "approximation gap")
NLL_BY = ("measures", "density", "nll_by")
TRAIN_EVIDENCE = ("measures", "train", "log_evidence_per_datum")


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


def _row(group):
    done = [record for record in group if record["status"] == "ok"]
    guide = Path(group[0]["config"]["guide"]).stem  # a user's own is a file
    row = {
        "label": group[0]["label"],
        "model": group[0]["label"].removesuffix(f"-{guide}"),
        "guide": guide,
        "ok": len(done),
        "all": len(group),
        "evidence": {r["seed"]: get(r, TRAIN_EVIDENCE) for r in done},
        "bounded": any(get(r, NLL_BY) == "importance" for r in done),
    }
    row |= {column: _mean(done, path) for column, path in COLUMNS.items() if path}
    for column in INTERVALS:
        path = BOUNDS[column]
        for end in ("lower", "upper"):
            name = path[-1].replace("_per_datum", f"_{end}_per_datum")
            row[f"{column} {end}"] = _mean(done, (*path[:-1], name))
    return row


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
    values = [value for value in (get(record, path) for record in records) if value is not None]
    return _mean_and_se([float(value) for value in values])  # "inf" is how JSON has infinity


def _mean_and_se(values):
    if not values:
        return None
    if math.inf in values:
        return math.inf, None
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), se


def get(record, path):
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record

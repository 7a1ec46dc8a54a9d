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
COSTS = {
    "shortfall": None,  # against the other guides of the model, see _shortfall
    "log evidence": BOUNDS["log evidence"],
    "total gap": BOUNDS["total gap"],
    "approximation gap": BOUNDS["approximation gap"],
    "amortization gap": BOUNDS["amortization gap"],
    **{name: DIAGNOSTICS[name] for name in ("median k", "k > 0.7", "90 % covers", "ranks refused")},
    "seconds": BOUNDS["seconds"],
    "ms a step": ("cost", "steps_per_second"),
    "µs per new datum": ("cost", "seconds_per_new_datum"),
    "MiB": ("cost", "memory_bytes"),
}
UNITS = {
    "ms a step": lambda rate: 1e3 / rate if rate else math.inf,
    "µs per new datum": lambda seconds: 1e6 * seconds,
    "MiB": lambda count: count / 2**20,
}
"""A column's number from that of the record, where the unit is another."""
COLUMNS = BOUNDS | DIAGNOSTICS | DENSITIES | COSTS
READING = {
    "shortfall": "the highest log evidence of held-out data that any guide gave the model, less "
    "the ELBO of this guide, nats a datum: what the model lost under the guide, and the gap to the "
    "model that the guide trained",
    "train ELBO": "the bound on the log evidence of the training data, nats a datum; higher is "
    "better",
    "held-out ELBO": "the same bound for data that the model was not fitted to",
    "log evidence": "log p(x) of held-out data, nats a datum, under the fit's own parameters: what "
    "the ELBO would be under the exact posterior",
    "total gap": "log evidence − ELBO: what the guide loses to the exact posterior",
    "approximation gap": "the part of the total gap that the best of the guide's family leaves, "
    "which no training mends",
    "amortization gap": "the part of the total gap that the encoder adds: what the best of the "
    "family would gain on its answer",
    "training gap": "by how much the model's exact evidence on the training data stays below that "
    "of the guide that trained it best",
    "generalization gap": "train ELBO − held-out ELBO; a table's training rows are as SVI left "
    "them, its held-out rows searched to convergence",
    "label error": "share of the held-out data whose likeliest label under the guide is not the "
    "true one",
    "purity": "share of held-out data whose label is the commonest in their cluster, the value of "
    "the finite latent that the guide holds likeliest",
    "k > 0.7": "share of the data whose Pareto k is so large that importance sampling cannot mend "
    "the guide",
    "median k": "Pareto shape of log p − log q for the datum in the middle; below 0.7 the guide's "
    "draws can be reweighted to the posterior's",
    "50 % covers": "how often the guide's central interval holds the latent that made the datum; "
    "an exact guide's does so for 50 % of data simulated from the fit",
    "90 % covers": "the same of its wider interval, where an exact guide has 90 %; less means that "
    "the guide is too sure",
    "ranks refused": "share of the fits whose ranks, of any latent or of the log joint density, "
    "leave the simultaneous band that an exact guide leaves once in 20",
    "parameters": "those of the model, its guide's left out",
    "test NLL": "negative log likelihood of the held-out data, nats a datum",
    "± over data": "its standard error as a mean over held-out data",
    "seconds": "those of training, a program's shared by its seeds",
    "ms a step": "seconds of training over steps; a step is one of all seeds that a program trains "
    "at once",
    "seconds for 100 draws": "of new rows from the model, all at once; autoregressive models draw "
    "entry by entry",
    "µs per new datum": "until a held-out datum has its q",
    "MiB": "what training of one seed keeps (parameters, buffers, moments) and the most that "
    "tensors take beside it in one eager step, the data left out",
}
"""What a column says, without its end: the captions say some of it in their sentences."""
INTERVALS = ("log evidence", "total gap", "approximation gap")
NLL_BY = ("measures", "density", "nll_by")
TRAIN_EVIDENCE = ("measures", "train", "log_evidence_per_datum")
HELD_OUT_EVIDENCE = ("measures", "gaps", "log_evidence_per_datum")
HELD_OUT_ELBO = ("measures", "gaps", "elbo_per_datum")
SHORTFALL = {
    "shortfall": (HELD_OUT_EVIDENCE, HELD_OUT_ELBO),
    **{
        f"shortfall {end}": tuple(
            ("measures", "gaps", name)
            for name in (f"log_evidence_{end}_per_datum", "interval_elbo_per_datum")
        )
        for end in ("lower", "upper")
    },
}
"""Evidence, and the bound on the same data, by which guides are behind the best."""


def rows(records):
    """One dict per model and guide: names, seeds, and {column: (mean, se) or None}.

    se is the spread over seeds divided by the root of their number; None for one seed.  The columns
    in INTERVALS have "... lower" and "... upper" beside, for an evidence between two bounds.
    """
    labels = list(dict.fromkeys(record["label"] for record in records))
    found = [_row([r for r in records if r["label"] == label]) for label in labels]
    for row in found:
        group = [r for r in found if r["model"] == row["model"]]
        row["training gap"] = behind(row, group, "evidence", "evidence")
        row |= {name: behind(row, group, name, f"{name} own") for name in SHORTFALL}
    return found


def by_cost(found):
    """The rows of each model in order of their shortfall, those where it is unknown last."""
    models = list(dict.fromkeys(row["model"] for row in found))

    def place(row):
        ends = [row[name][0] for name in SHORTFALL if row[name] is not None]
        return models.index(row["model"]), statistics.fmean(ends) if ends else math.inf

    return sorted(found, key=place)


def guide_of(record):
    """The guide's name; a user's own is a file."""
    return Path(record["config"]["guide"]).stem


def model_of(record):
    """The name by which the comparison knows the model, a variant's own."""
    return record["label"].removesuffix(f"-{guide_of(record)}")


def weighted(record):
    """(number of draws, base guide) of a guide that weighs another guide's draws, else None."""
    options = record["config"].get("guide_options") or {}
    return (options["num_draws"], options["base"]) if {"num_draws", "base"} <= {*options} else None


def _row(group):
    done = [record for record in group if record["status"] == "ok"]
    row = {
        "label": group[0]["label"],
        "model": model_of(group[0]),
        "guide": guide_of(group[0]),
        "ok": len(done),
        "all": len(group),
        "bounded": any(get(r, NLL_BY) == "importance" for r in done),
        "searched": any(get(r, ("cost", "new_data_by")) == "search" for r in done),
        "steps": max((get(r, ("cost", "steps")) or 0 for r in done), default=0),
        "weighted": weighted(group[0]),
        "by seed": _by_seed(done),
    }
    row |= {c: _mean(done, path, UNITS.get(c, float)) for c, path in COLUMNS.items() if path}
    for column in INTERVALS:
        path = BOUNDS[column]
        for end in ("lower", "upper"):
            name = path[-1].replace("_per_datum", f"_{end}_per_datum")
            row[f"{column} {end}"] = _mean(done, (*path[:-1], name))
    return row


def _by_seed(done):
    """What guides are compared by, seed by seed: {name: {seed: number or None}}."""
    found = {"evidence": TRAIN_EVIDENCE, "elbo": HELD_OUT_ELBO}
    if done and done[0]["config"].get("measure", {}).get("costs"):
        found |= {name: evidence for name, (evidence, _) in SHORTFALL.items()}
        found |= {f"{name} own": own for name, (_, own) in SHORTFALL.items()}
    return {name: {r["seed"]: get(r, path) for r in done} for name, path in found.items()}


def behind(row, group, of_best, own):
    """(mean, se) over seeds of the best guide's `of_best` minus the row's `own`; None if unknown.

    Both are names in "by seed".  The seeds are paired, and the best guide of the group is the one
    whose mean is highest.
    """
    mine, known = _complete(row, own), [r for r in group if _complete(r, of_best)]
    if not mine or not known:
        return None
    best = max((_complete(r, of_best) for r in known), key=lambda v: statistics.fmean(v.values()))
    return mean_and_se([best[seed] - mine[seed] for seed in sorted(best.keys() & mine.keys())])


def _complete(row, name):
    """{seed: number}, empty where a seed has none."""
    found = row["by seed"].get(name, {})
    return {} if None in found.values() else found


def _mean(records, path, unit=float):
    """(mean, se) of a field over records, each in its unit, or None where it is in none."""
    values = [value for value in (get(record, path) for record in records) if value is not None]
    return mean_and_se([unit(float(value)) for value in values])  # JSON's infinity is "inf"


def mean_and_se(values):
    """(mean, se) of numbers, se None for a single one; None for none."""
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

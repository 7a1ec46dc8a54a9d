"""Everything that is measured of one fitted guide."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from experiments.measure import pareto
from experiments.measure.bidirectional import evidence_interval
from experiments.measure.calibration import Calibration, calibrate
from experiments.measure.elbo import draw, elbo
from experiments.measure.gaps import gap_values, own_and_best, summary
from experiments.measure.rows import restricted
from zoo.data.dataset import subset
from zoo.errors import ZooError

JOINT_UNITS = 10  # data sets simulated for the interval of a joint problem
JOINT_REPEATS = 10  # of its Pareto k


@dataclass(frozen=True, eq=False)
class Measured:
    """The measures of one fitted guide, datum by datum; `record` has their means.

    rows: (m,) which held-out data the Pareto k (m,) are of.  values: the gaps of held-out data,
    {measure: (n,)} nats; bounded: the same of the data whose evidence is put between bounds.  A
    joint problem has no held-out data: rows, k and gaps are of the data that it was fitted to.
    k is None where all latents are finite and discrete, so that every weight is bounded, and
    calibration None where it was not asked for.  skipped: {measure: why it has no answer here}.
    """

    train: dict
    values: dict
    search: dict
    bounded: dict
    held_out: dict
    rows: torch.Tensor
    k: torch.Tensor | None
    labels: torch.Tensor | None
    k_se: float | None
    calibration: Calibration | None
    skipped: dict = field(default_factory=dict)

    def record(self):
        """A nest of plain numbers; per-datum measures as means with standard errors."""
        found = {"train": self.train, "gaps": summary(self.values) | self.search}
        found["gaps"] |= {
            name: value for name, value in self.bounded.items() if name not in found["gaps"]
        }
        if self.held_out:
            found["held_out"] = self.held_out
        if self.k is not None:
            found["pareto"] = pareto.summary(self.k, self.labels) | {"median_se": self.k_se}
            for one in found["pareto"]["worst"]:
                one["index"] = self.rows[one["index"]].item()
        if self.calibration is not None:
            found["calibration"] = calibration_record(self.calibration)
        if self.skipped:
            found["skipped"] = self.skipped
        return _plain(found)


@torch.no_grad()
def measure(problem, guide, config):
    """Bounds, evidence, gaps, Pareto k and calibration of a fitted guide: Measured.

    problem: with the fitted model.  config: a MeasureConfig.
    """
    train = _train(problem, guide, config.num_draws)
    x = problem.data.train if problem.joint else problem.data.test
    with torch.enable_grad():
        own, best = own_and_best(problem, guide, x, config.restarts)
    values = gap_values(problem, own, x, best.guide, config.num_draws)
    search = {
        "row_steps": best.steps,
        "row_converged": best.converged,
        "row_restarts": best.restarts,
        "row_restarted": best.restarted,
    }
    bounded, skipped = {}, {}
    k, k_se, calibration = None, None, None
    if problem.truth.log_evidence is not None:
        error = problem.evidence_error(x).max().item()
        search["evidence_error_max"] = error / (len(x) if problem.joint else 1)
    elif config.interval_rows:
        with skipping("evidence interval", skipped):
            bounded = _between_bounds(problem, own, best.guide, x, config)
    rows = subset(x, config.pareto_rows)
    labels = None if problem.joint else problem.data.test_labels
    with skipping("k", skipped):
        k, k_se = _pareto(problem, own, x, rows, config.pareto_draws)
    with skipping("calibration", skipped):
        calibration = _calibration(problem, guide, config)
    return Measured(
        train=train,
        values=values,
        search=search,
        bounded=bounded,
        held_out={} if problem.joint else _held_out(train, values),
        rows=rows,
        k=k,
        labels=None if labels is None else labels[rows],
        k_se=k_se,
        calibration=calibration,
        skipped=skipped,
    )


@contextmanager
def skipping(name, skipped):
    """Note why a measure has no answer here, and go on to the others."""
    try:
        yield
    except ZooError as error:
        skipped[name] = str(error)


def _plain(value):
    """The same nest as JSON has it: "inf" for an infinite k, None for the error of one value."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value


def _train(problem, guide, num_draws):
    """The bound and, where it is known, the evidence of the training data."""
    bound = elbo(draw(problem.model, guide, problem.data.train, num_draws))
    found = {"elbo_per_datum": bound.value, "elbo_per_datum_draws_se": bound.se}
    if problem.truth.log_evidence is None:
        return found
    evidence = problem.log_evidence(problem.data.train).double()
    if problem.joint:
        return found | {"log_evidence_per_datum": evidence.item() / len(problem.data.train)}
    return found | summary({"log_evidence": evidence})


def _held_out(train, values):
    """The bound on held-out data, and by how much that on the training data is higher."""
    found = summary({"elbo": values["elbo"]})
    found["generalization_gap_per_datum"] = train["elbo_per_datum"] - found["elbo_per_datum"]
    return found


def _between_bounds(problem, own, best, x, config):
    """Evidence and gaps of some rows as intervals, where the evidence is not known exactly."""
    rows = subset(x, len(x) if problem.joint else config.interval_rows)
    own, best = (restricted(problem, guide, x, rows) for guide in (own, best))
    with torch.enable_grad():
        found = evidence_interval(
            problem,
            own,
            x[rows],
            config.interval_draws,
            num_units=_units(problem, config),
            num_temperatures=config.interval_temperatures,
        )
    # The width is an estimate of what cannot be negative; its noise must not turn the ends round.
    width = max(found.width, 0.0) + 2 * found.width_se
    ends = found.lower.value, found.lower.value + width
    measured = summary(gap_values(problem, own, x[rows], best, config.num_draws, ends))
    # Over these rows, where the full set's ELBO and amortization gap are over all.
    measured |= {
        f"interval_{name}_per_datum": measured[f"{name}_per_datum"]
        for name in ("elbo", "amortization_gap")
    }
    return measured | {
        "interval_rows": len(rows),
        "interval_method": found.method,
        "interval_width": found.width,
        "interval_width_se": found.width_se,
    }


def _pareto(problem, own, x, rows, num_draws):
    """Pareto k of some rows, or of all rows of a joint problem together, and its error there.

    One k of a joint problem is a noisy number, so it is the mean of JOINT_REPEATS.
    """
    if all(latent.num_values for latent in problem.latents):
        return None, None
    if not problem.joint:
        own = restricted(problem, own, x, rows)
        return pareto.pareto_k(problem, own, x[rows], num_draws), None
    each = [pareto.pareto_k(problem, own, x, num_draws, seed) for seed in range(JOINT_REPEATS)]
    each = torch.stack(each)
    return each.mean(0), (each.std() / math.sqrt(JOINT_REPEATS)).item()


def _units(problem, config):
    """How many units are simulated for the interval: at least two, for an error."""
    return max(2, min(config.interval_rows, JOINT_UNITS if problem.joint else config.interval_rows))


def _calibration(problem, guide, config):
    """Ranks over simulated data; a joint problem would need a fit for each, and has none here."""
    if problem.joint or not config.simulations:
        return None
    with torch.enable_grad():
        return calibrate(problem, guide, config.simulations, config.rank_draws)


def calibration_record(calibration):
    """What ranks say, as plain numbers: the verdict, and coverage averaged over the latents."""
    found = calibration.summary()
    latents = [row for row in found["quantities"] if row["quantity"] != "log_joint"]
    for name in ("coverage_50", "coverage_90"):  # a finite latent has names, and no intervals
        if latents:
            found[name] = math.fsum(row[name] for row in latents) / len(latents)
    return found | {"refused": float(not calibration.calibrated)}

"""Everything that is measured of one fitted guide."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from experiments.measure import pareto
from experiments.measure.bidirectional import evidence_interval
from experiments.measure.calibration import Calibration, calibrate
from experiments.measure.cost import clock, seconds_per_new_datum
from experiments.measure.density import density
from experiments.measure.elbo import draw, elbo
from experiments.measure.gaps import gap_values, own_and_best, summary
from experiments.measure.labels import label_errors, likeliest
from experiments.measure.purity import cluster_latent, purity
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
    k is None where all latents have few enough values to be summed over, so that every weight is
    bounded, and calibration None where it was not asked for.  skipped: {measure: why it has no
    answer here}.  cost: seconds for new data, which are no measure of the fit and not in `record`.
    """

    train: dict
    values: dict
    search: dict
    bounded: dict
    held_out: dict
    density: dict
    rows: torch.Tensor
    k: torch.Tensor | None
    labels: torch.Tensor | None
    k_se: float | None
    calibration: Calibration | None
    skipped: dict = field(default_factory=dict)
    cost: dict = field(default_factory=dict)

    def record(self):
        """A nest of plain numbers; per-datum measures as means with standard errors."""
        found = {"train": self.train, "gaps": summary(self.values) | self.search}
        found["gaps"] |= {
            name: value for name, value in self.bounded.items() if name not in found["gaps"]
        }
        if self.held_out:
            found["held_out"] = self.held_out
        if self.density:
            found["density"] = self.density
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
    costs = clock(guide, x, config.costs and not problem.joint)
    with torch.enable_grad(), costs.searching():
        own, best = own_and_best(problem, guide, x, config.restarts, config.search)
    costs.take()
    top = None if best is None else best.guide
    values = gap_values(problem, own, x, top, config.num_draws)
    skipped, k, k_se, calibration = {}, None, None, None
    known, bounded = _evidence(problem, own, top, x, config, skipped)
    rows = subset(x, config.pareto_rows)
    labels = None if problem.joint else problem.data.test_labels
    densities = {}
    if config.densities and not problem.joint:
        with skipping("test NLL", skipped):
            densities = density(problem, own, x, config.nll_draws)
    with skipping("k", skipped):
        k, k_se = _pareto(problem, own, x, rows, config.pareto_draws)
    costs.take()
    with skipping("calibration", skipped):
        calibration = _calibration(problem, guide, config)
    costs.take()
    return Measured(
        train=train,
        values=values,
        search=_search(best) | known,
        bounded=bounded,
        held_out={} if problem.joint else _held_out(problem, own, train, values, config),
        density=densities,
        rows=rows,
        k=k,
        labels=None if labels is None else labels[rows],
        k_se=k_se,
        calibration=calibration,
        skipped=skipped,
        cost=seconds_per_new_datum(costs, len(x)),
    )


def _evidence(problem, own, best, x, config, skipped):
    """(its stated error where it is known, gaps of some rows where it is put between bounds)."""
    if problem.truth.log_evidence is not None:
        error = problem.evidence_error(x).max().item()
        return {"evidence_error_max": error / (len(x) if problem.joint else 1)}, {}
    if config.interval_rows:
        with skipping("evidence interval", skipped):
            return {}, _between_bounds(problem, own, best, x, config)
    return {}, {}


def _search(best):
    """What the search for the best of the family took, where there was one."""
    if best is None:
        return {}
    return {
        "row_steps": best.steps,
        "row_converged": best.converged,
        "row_restarts": best.restarts,
        "row_restarted": best.restarted,
    }


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


def _held_out(problem, own, train, values, config):
    """The bound on held-out data, by how much that on the training data is higher, and how labels
    agree with what the guide infers."""
    found = summary({"elbo": values["elbo"]})
    found["generalization_gap_per_datum"] = train["elbo_per_datum"] - found["elbo_per_datum"]
    labels = problem.data.test_labels
    if problem.label is not None and labels is not None:
        wrong = label_errors(problem, own, problem.data.test, labels, config.num_draws)
        if len(wrong):
            mean, spread = wrong.mean().item(), wrong.std(correction=0).item()
            found |= {"label_error": mean, "label_error_se": spread / math.sqrt(len(wrong))}
    return found | _purity(problem, own, config)


def _purity(problem, own, config):
    """How well held-out clusters agree with labels; nothing where there are none of either."""
    latent, labels = cluster_latent(problem), problem.data.test_labels
    if latent is None or labels is None or problem.label is not None:
        return {}
    found = likeliest(problem, own, latent, problem.data.test, config.num_draws)
    return {"purity": purity(labels, found)}


def _between_bounds(problem, own, best, x, config):
    """Evidence and gaps of some rows as intervals, where the evidence is not known exactly."""
    rows = subset(x, len(x) if problem.joint else config.interval_rows)
    own, best = (each and restricted(problem, each, x, rows) for each in (own, best))
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
        if f"{name}_per_datum" in measured
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
    if problem.joint or not problem.latents or not config.simulations:
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

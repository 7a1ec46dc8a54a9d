"""The race of gradient_estimators: from the same starts, which estimator comes to the best q first?

Each estimator trains the rows of q with Adam at several rates, of which its best counts; they take
chunks of steps by turns, and the seconds of a step are a median over chunks, others for each seed.
All seeds have one model and the same rows, and differ in starts and noise.  gap: what q is below
the best one that searches find, by sums over all states or by algebra.  Who does not arrive counts
with the last step.
"""

import statistics
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import zoo
from experiments.report.page import Cell, Table
from experiments.studies.parts.cells import number, over_seeds, short
from experiments.studies.parts.claims import above
from experiments.studies.parts.gradient_places import (
    BASELINE,
    ESTIMATORS,
    PATH,
    PLAIN,
    best_switches,
    config_for,
    exact_posterior,
    guide_for,
)
from experiments.studies.parts.rows import known
from experiments.svi.device import now
from experiments.svi.engine import advance
from experiments.svi.fused import Fused
from experiments.svi.run import Run
from zoo.densities import log_bernoulli
from zoo.distributions import all_vectors

TARGET, CHUNK = 0.1, 10  # nats a datum, the gap at which a race ends; steps between two looks
SEARCHES = 4  # for the best q of every row
FARTHEST = 1e9  # the gap of a run that is lost
CLAIMED = {"gaussian": (BASELINE, PATH), "bernoulli": (PLAIN, BASELINE)}
"""Of each kind of latents, who is claimed to be slower, and than whom."""


@dataclass
class Team:
    """The runs of one estimator at all rates and seeds, which share a program.

    gaps: of each run, after every chunk; seconds: a step of one run took, one a chunk.
    """

    name: str
    runs: list
    fused: Fused
    seconds: list = field(default_factory=list)
    gaps: list = field(default_factory=list)

    def look(self, gap):
        """Note the gap of every run."""
        self.gaps.append([gap(run) for run in self.runs])

    def take_chunk(self, device):
        """Take CHUNK steps of all runs that are alive."""
        started, left = now(device), CHUNK
        while left and any(run.alive for run in self.runs):
            left -= advance(self.runs, self.fused, left)
        self.seconds.append((now(device) - started) / CHUNK / len(self.runs))

    def rows(self, kind, seeds):
        """A row for each run."""
        for place, run in enumerate(self.runs):
            yield {
                "kind": kind,
                "estimator": self.name,
                "rate": run.config.row_learning_rate,
                "seed": run.seed,
                "gaps": [gaps[place] for gaps in self.gaps],
                "seconds": statistics.median(self.seconds[run.seed :: seeds]),
            }


def race(place, settings, device):
    """Rows with the gap after every chunk of steps, for each estimator, rate and seed."""
    data = place.problem.data
    data = zoo.data.DataSet(data.name, data.train[: settings.race_rows].to(device), data.test)
    problem = place.problem.having(data=data)
    names = ESTIMATORS[place.kind] if settings.race_all else CLAIMED[place.kind]
    teams = [team(name, problem, place.kind, settings, device) for name in names]
    gap = remaining(problem)
    for turn in range(settings.race_steps // CHUNK + 1):
        for own in teams:
            if turn:
                own.take_chunk(device)
            own.look(gap)
    return [row for own in teams for row in own.rows(place.kind, settings.seeds)]


def team(name, problem, kind, settings, device):
    """The runs of an estimator, about to start."""
    config = config_for(ESTIMATORS[kind][name], steps=settings.race_steps, decay=1.0)
    runs = [
        Run.start(
            problem, guide_for(problem, name),
            config.model_copy(update={"row_learning_rate": rate}), seed, device,
        )
        for rate, seed in product(settings.rates, range(settings.seeds))
    ]  # fmt: skip
    fused = Fused(runs, problem)
    fused.prepare(compiling=False)
    return Team(name, runs, fused)


def remaining(problem):
    """A function of a run: the nats a datum by which its q is below the best that is known."""
    of = _below_the_posterior if problem.name == "gaussian_lvm" else _below_the_best_switches
    gap = of(problem, problem.data.train)

    @torch.no_grad()
    def of_run(run):
        found = gap(run.modules["guide"].rows(problem.data.train)["z"])
        return found.nan_to_num(nan=FARTHEST, posinf=FARTHEST).item()

    return of_run


def _below_the_posterior(problem, x):
    posterior = exact_posterior(problem, x)

    def gap(parameters):
        loc, log_scale = parameters.double().chunk(2, -1)
        factor = log_scale.exp().diag_embed()
        q = MultivariateNormal(loc, scale_tril=factor, validate_args=False)
        return kl_divergence(q, posterior).mean()

    return gap


def _below_the_best_switches(problem, x):
    states = all_vectors(problem.latents[0].event_shape[0], like=x)
    with torch.no_grad():
        log_p = zoo.bernoulli_lvm.cross_log_joint(problem.model, x, states)

    def bound(logits):
        log_q = log_bernoulli(states, logits[:, None])
        return (log_q.exp() * (log_p - log_q)).sum(-1)

    best = bound(best_switches(problem, x, SEARCHES))
    return lambda logits: (best - bound(logits)).mean()


def racers(results, kind):
    """The estimators that raced."""
    return known([row for row in results["race"] if row["kind"] == kind], "estimator")


def arrivals(results, kind, name):
    """(rate, steps, seconds of a step, who arrived), a number a seed, at the best rate.

    Of rates at which nobody arrives the best is that of the smallest gap at the end.
    """
    rows = [r for r in results["race"] if (r["kind"], r["estimator"]) == (kind, name)]
    found = {}
    for row in rows:
        there = [i for i, gap in enumerate(row["gaps"]) if gap <= TARGET]
        looks = _crossing(row["gaps"], there[0]) if there else len(row["gaps"]) - 1
        found.setdefault(row["rate"], []).append((CHUNK * looks, row["seconds"], bool(there)))
    left = {rate: np.mean([r["gaps"][-1] for r in rows if r["rate"] == rate]) for rate in found}
    rate = min(found, key=lambda rate: (np.mean(found[rate], 0)[0], left[rate]))
    return rate, *np.array(found[rate]).T


def _crossing(gaps, first):
    """When the gap came to the target, between two looks, as its logarithm falls evenly."""
    if first == 0:
        return 0
    before, after = gaps[first - 1], max(gaps[first], 1e-6)
    return first - np.log(TARGET / after) / np.log(before / after)


def race_claims(results):
    """What the texts say of steps and seconds."""
    for kind, (slow, fast) in CLAIMED.items():
        each = [arrivals(results, kind, name) for name in (slow, fast)]
        (more, fewer), (own, other) = (np.log10([e[i] for e in each]) for i in (1, 2))
        came = " and ".join(
            f"{e[3].sum():.0f} of {len(e[3])} of {name}"
            for e, name in zip(each, (slow, fast), strict=True)
        )
        for what, values in (("steps", more - fewer), ("seconds", more + own - fewer - other)):
            sentence = f"{kind}: {slow} takes more {what} than {fast} to within {TARGET} nats"
            claim = above(sentence, values, " powers of ten")
            yield replace(claim, found=f"{claim.found}; arrived: {came}")


def race_table(results):
    """The way to the best q of each estimator."""
    lines = []
    for kind in ESTIMATORS:
        for name in racers(results, kind):
            rate, steps, step, there = arrivals(results, kind, name)
            share = Cell(f"{there.sum():.0f}/{len(there)}", there.mean())
            cells = [
                _at_least(over_seeds(steps, 0), there),
                _at_least(over_seeds(steps * step, 4), there),
                short(1000 * np.median(step)),
            ]
            lines.append([kind, name, number(rate, 2), *cells, share])
    caption = (
        f"To a gap of {TARGET} nats a datum, looked at every {CHUNK} steps, at the constant rate "
        "that is best on average over the seeds; one model and the same rows. ms a step: of one "
        "run, median over chunks by turns; runs of all seeds and rates share a program. seconds: "
        "steps times that. arrived: seeds that came there; others count with the last step, so "
        "that the numbers are lower bounds. ± is the standard error over seeds."
    )
    head = ["latents", "estimator", "rate", "steps", "seconds", "ms a step", "arrived"]
    return Table("The way to the best q", head, lines, caption)


def _at_least(cell, there):
    """The cell, as a lower bound where some did not arrive."""
    return cell if there.all() else Cell(f"≥ {cell.text}", cell.number)


def median_gaps(results, kind, name):
    """Medians over seeds at the best rate, after every chunk."""
    rate = arrivals(results, kind, name)[0]
    key = kind, name, rate
    rows = [r for r in results["race"] if (r["kind"], r["estimator"], r["rate"]) == key]
    return np.median(np.array([row["gaps"] for row in rows], dtype=float), 0).clip(1e-4)

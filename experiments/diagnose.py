"""`diagnose`: every measure of a fit, as a text and figures."""

from dataclasses import dataclass
from pathlib import Path

from experiments.measure import predictive
from experiments.measure.c2st import TwoSample, c2st
from experiments.measure.measures import Measured, measure
from experiments.measure.pairs import Pair, draw_pair
from experiments.measure.rows import restricted
from experiments.report.diagnosis import draw_diagnosis, text
from experiments.settings import MeasureConfig
from experiments.svi import checkpoint
from experiments.svi.config import validated
from experiments.svi.fit import Fit, prepare
from zoo.data.dataset import subset

STATISTICS = ("mean", "sd", "min", "max", "sd_of_row_sums")
REPLICATES = 200  # data sets drawn for the predictive checks
CHECKED_ROWS = 500  # of the training data, at most
TESTED_ROWS = 200  # for the classifier test


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found of a fit: the measures of each seed, and the same in words.

    Of the first seed and some training rows: checks, {observed site: predictive Checks}, and
    two_sample, the classifier test against the exact posterior, None where that is not known.
    """

    fit: Fit
    measured: tuple[Measured, ...]
    checks: dict
    two_sample: TwoSample | None
    text: str

    def records(self):
        """For each seed a nest of plain numbers, as `zoo compare` records it."""
        return [one.record() for one in self.measured]

    def write(self, out):
        """Write diagnosis.md and the figures into a folder; returns the names of the files."""
        out = Path(out)
        prepare(out)
        figures = draw_diagnosis(out, self.fit, self.measured)
        checkpoint.write_bytes(out / "diagnosis.md", self.text.encode())
        return ["diagnosis.md", *figures]


def diagnose(fit, out=None, statistics=STATISTICS, **settings):
    """Gaps, Pareto k, calibration and predictive checks of a Fit: a Diagnosis.

    out: folder for diagnosis.md and figures.  statistics: of the predictive checks, as
    `experiments.measure.predictive.check` takes them.  settings: fields of MeasureConfig.
    Raises ZooError for unknown settings, or a guide without log q, such as a point estimate.
    """
    config = validated(MeasureConfig, **settings)
    if out is not None:
        prepare(Path(out))
    pairs = zip(fit.problems, fit.guides, strict=True)
    measured = tuple(measure(problem, guide, config) for problem, guide in pairs)
    problem, guide = fit.problems[0], fit.guides[0]
    checks, two_sample = (
        predictive_checks(problem, guide, statistics),
        against_truth(problem, guide),
    )
    words = text(fit, measured, checks, two_sample)
    found = Diagnosis(fit, measured, checks, two_sample, words)
    if out is not None:
        found.write(out)
    return found


def predictive_checks(problem, guide, statistics=STATISTICS):
    """Do data like the training data come from the fit? {observed site: [Check]}.

    Of at most CHECKED_ROWS rows, all of them where the problem is joint.
    """
    guide, x = _some_rows(problem, guide, CHECKED_ROWS)
    pair = Pair(problem.model, guide, (x,))
    draws = draw_pair(pair, REPLICATES, parallel=True, prior=False)
    return {
        site: predictive.check(replicated, draws.observed_data[site][1], statistics)
        for site, (_, replicated) in draws.posterior_predictive.items()
    }


def against_truth(problem, guide):
    """The classifier test of the guide's draws against the exact posterior's: TwoSample.

    None where the posterior is not known, or is one of several latents.
    """
    if problem.joint or len(problem.latents) > 1 or problem.truth.posterior is None:
        return None
    guide, x = _some_rows(problem, guide, TESTED_ROWS)
    return c2st(problem, guide, x)


def _some_rows(problem, guide, count):
    """(guide, rows): some of the training rows, all of them where the problem is joint."""
    x = problem.data.train
    rows = subset(x, len(x) if problem.joint else count)
    return restricted(problem, guide, x, rows), x[rows]

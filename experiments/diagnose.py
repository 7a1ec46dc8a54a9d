"""`diagnose`: every measure of a fit, as a text and figures."""

from dataclasses import dataclass
from pathlib import Path

from experiments.measure.measures import Measured, measure
from experiments.report.diagnosis import draw_diagnosis, text
from experiments.settings import MeasureConfig
from experiments.svi import checkpoint
from experiments.svi.config import validated
from experiments.svi.fit import Fit, prepare


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found of a fit: the measures of each seed, and the same in words."""

    fit: Fit
    measured: tuple[Measured, ...]
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


def diagnose(fit, out=None, **settings):
    """Gaps, Pareto k and calibration of every seed of a Fit: a Diagnosis.

    out: folder for diagnosis.md and figures.  settings: fields of MeasureConfig.
    Raises ZooError for unknown settings, or a guide without log q, such as a point estimate.
    """
    config = validated(MeasureConfig, **settings)
    if out is not None:
        prepare(Path(out))
    pairs = zip(fit.problems, fit.guides, strict=True)
    measured = tuple(measure(problem, guide, config) for problem, guide in pairs)
    found = Diagnosis(fit, measured, text(fit, measured))
    if out is not None:
        found.write(out)
    return found

"""Experiments: fit guides to problems by SVI, measure the gaps, diagnose, compare, report."""

from experiments.check import check
from experiments.compare import compare
from experiments.diagnose import diagnose
from experiments.measure.annealing import ais
from experiments.measure.bidirectional import bdmc, evidence_interval
from experiments.measure.bridge import from_svi
from experiments.measure.c2st import c2st
from experiments.measure.calibration import calibrate
from experiments.measure.evidence import iwae
from experiments.measure.pareto import pareto_k
from experiments.measure.purity import purity
from experiments.measure.rows import fit_rows
from experiments.study import study
from experiments.svi.compiled_elbo import CompiledTrace_ELBO, CompiledTraceEnum_ELBO
from experiments.svi.fit import fit, sweep

__all__ = [
    "CompiledTraceEnum_ELBO",
    "CompiledTrace_ELBO",
    "ais",
    "bdmc",
    "c2st",
    "calibrate",
    "check",
    "compare",
    "diagnose",
    "evidence_interval",
    "fit",
    "fit_rows",
    "from_svi",
    "iwae",
    "pareto_k",
    "purity",
    "study",
    "sweep",
]

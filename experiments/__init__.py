"""Experiments: fit guides to problems by SVI, measure the gaps, compare, report."""

from experiments.check import check
from experiments.compare import compare
from experiments.measure.annealing import ais
from experiments.measure.bidirectional import bdmc, evidence_interval
from experiments.measure.evidence import iwae
from experiments.measure.rows import fit_rows
from experiments.svi.fit import fit

__all__ = ["ais", "bdmc", "check", "compare", "evidence_interval", "fit", "fit_rows", "iwae"]

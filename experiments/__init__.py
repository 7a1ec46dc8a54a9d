"""Experiments: fit guides to problems by SVI, measure the gaps, compare, report."""

from experiments.compare import compare
from experiments.measure.rows import fit_rows
from experiments.svi.fit import fit

__all__ = ["compare", "fit", "fit_rows"]

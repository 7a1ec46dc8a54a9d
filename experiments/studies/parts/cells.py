"""Cells of a study's tables: numbers over seeds as text, with the number to sort by."""

import math

from experiments.report.page import Cell
from experiments.studies.parts.claims import mean_se


def over_seeds(values, digits=3, factor=1.0, sign=""):
    """The mean and its standard error over seeds; of one value, that value."""
    mean, se = mean_se([math.nan if value is None else factor * value for value in values])
    if math.isnan(mean):
        return number(None)
    error = "" if len(values) == 1 else f" ± {se:.{digits}f}"
    return Cell(f"{mean:,.{digits}f}{error}{sign}", mean)


def percent(values, digits=1):
    """Shares over seeds in percent."""
    return over_seeds(values, digits, 100.0, " %")


def number(value, digits=3):
    """A single number."""
    return Cell("–" if value is None else f"{value:,.{digits}f}", value)


def short(value):
    """A number of any size: three digits of it, or all before the point."""
    text = "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return Cell(text, value)

"""What must hold, as ratios measured in one run, and whether it does."""

import math
from dataclasses import dataclass
from statistics import quantiles

from experiments.benchmarks.cases import SIZES
from experiments.benchmarks.contenders import BY_HAND, NUMPYRO

COMPARE_SECONDS = 90
BOUND_BY_OVERHEAD = 2  # a step of one seed that takes more than this many times the limit


@dataclass(frozen=True)
class Check:
    """A bound on a measured figure: at most or at least; measured None where nothing was."""

    what: str
    bound: float
    measured: float | None
    at_least: bool = False
    why: str = ""

    @property
    def status(self):
        """pass, MISS or not measured."""
        if self.measured is None:
            return "not measured"
        holds = self.measured >= self.bound if self.at_least else self.measured <= self.bound
        return "pass" if holds else "MISS"

    @property
    def sentence(self):
        """The check on one line."""
        sign = "at least" if self.at_least else "at most"
        figure = "" if self.measured is None else f", measured {self.measured:.2f}"
        why = f" ({self.why})" if self.why else ""
        return f"{self.status}: {self.what}: {sign} {self.bound:g}{figure}{why}"


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, and the quartiles of the ratios of the rounds."""

    value: float
    low: float
    high: float


def ratio(above, below, factor=1.0):
    """The Ratio of two rows, times a factor; None where either has no numbers."""
    if above is None or below is None or above.absent or below.absent:
        return None
    rounds = [factor * a / b for a, b in zip(above.milliseconds, below.milliseconds, strict=True)]
    low, _, high = quantiles(rounds, n=4) if len(rounds) > 1 else rounds * 3
    return Ratio(factor * above.median / below.median, low, high)


class Table:
    """The rows of one group by contender, seeds and number of data."""

    def __init__(self, group):
        self.rows, self.limit = group["rows"], group["limit_milliseconds"]
        self.case = self.rows[0].case

    def row(self, contender, seeds=1, num_data=None):
        """That row, or None."""
        for row in self.rows:
            here = num_data is None or row.case.num_data == num_data
            if row.contender == contender and row.case.seeds == seeds and here:
                return row
        return None

    def fastest(self, contenders):
        """The row of the fastest of them that took part, or None."""
        found = [self.row(name) for name in contenders]
        found = [row for row in found if row is not None and row.absent is None]
        return min(found, key=lambda row: row.median, default=None)

    @property
    def bound_by_overhead(self):
        """Whether a fused step of one seed takes more than twice the machine's limit."""
        fused = self.fastest(["fused"])
        return fused is not None and fused.median > BOUND_BY_OVERHEAD * self.limit


def checks(base, tables, compare_seconds, device, lost=(), whole=True):
    """Every Check of the run: base is a list of groups, tables the group of growing tables.

    lost: names of groups without a result.  whole: whether more was asked for than some cases.
    """
    found = [Table(group) for group in base]
    if device != "cpu":
        each = [check for table in found for check in _on_gpu(table)]
        return each + [Check(f"{name}: fused / by hand", 1.1, None) for name in lost]
    each = [check for table in found for check in _on_cpu(table)]
    each += [Check(f"{name}: fused / by hand", 1.0, None) for name in lost]
    if not whole:
        return each
    return [*each, _geometric_mean(found), _growth(tables), _compare(compare_seconds)]


def _check(what, bound, found, at_least=False, why=""):
    return Check(what, bound, None if found is None else found.value, at_least, why)


def _on_cpu(table):
    name, fused = table.case.name, table.row("fused")
    by_hand, numpyro = table.fastest(BY_HAND), table.fastest(NUMPYRO)
    yield _check(f"{name}: fused / by hand", 1.0, ratio(fused, by_hand))
    yield _check(f"{name}: fused / the better NumPyro", 1.1, ratio(fused, numpyro))
    factor = _pyro_factor(table.case)
    if factor is not None:
        yield _check(
            f"{name}: pyro.infer.SVI / fused", factor, ratio(table.row("pyro"), fused), True
        )
    if table.bound_by_overhead:
        many = ratio(table.row("fused", seeds=16), fused, 1 / 16)
        yield _check(f"{name}: 16 seeds at once / 16 times one", 0.5, many)


def _pyro_factor(case):
    """By how much a fused step must be faster than Pyro's; None where nothing is asked."""
    if case.model != "vae":
        return 4
    return {SIZES[0]: 5, SIZES[1]: 1.8}.get((case.batch_size, case.hidden[0]))


def _on_gpu(table):
    name, fused = table.case.name, table.row("fused")
    if table.case.batch_size <= 256:
        yield _check(f"{name}: pyro.infer.SVI / fused", 10, ratio(table.row("pyro"), fused), True)
    graph = table.row("handwritten_graph")
    yield _check(f"{name}: fused / by hand as a CUDA graph", 1.1, ratio(fused, graph))
    many = ratio(table.row("fused", seeds=16), fused)
    yield _check(f"{name}: 16 seeds at once / one", 2, many)


def _geometric_mean(found):
    ratios = [ratio(table.row("fused"), table.fastest(NUMPYRO)) for table in found]
    known = [math.log(r.value) for r in ratios if r is not None]
    value = math.exp(sum(known) / len(known)) if known else None
    return Check("all rows: fused / the better NumPyro, geometric mean", 1.0, value)


def _growth(tables):
    what = "mean_field, fused: a step at the largest N / at the smallest"
    if tables is None:
        return Check(what, 1.2, None)
    table = Table(tables)
    counts = sorted({row.case.num_data for row in table.rows})
    few, many = (table.row("fused", num_data=count) for count in (counts[0], counts[-1]))
    return _check(what, 1.2, ratio(many, few), why=f"N = {counts[0]:,} and {counts[-1]:,}")


def _compare(seconds):
    return Check("zoo compare, seconds with an empty compilation cache", COMPARE_SECONDS, seconds)

"""Claims: a sentence of the source texts, what was measured, and whether the data support it.

A claim of the kind "this is above that" holds where a one-sided t test over replicates refuses, at
LEVEL, that it is not; where the test the other way round refuses that it is, the data refute it.
Replicates are seeds, unless a claim names others.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from zoo.errors import require

LEVEL = 0.01


@dataclass(frozen=True)
class Claim:
    """sentence: what is claimed; found: the numbers in words; p: of the test, where there is one.

    refuted: whether a test the other way round holds, and p_other, where there is one, its p.
    texts: whether it is the source texts' own claim, or one of this study's.  certain: whether it
    holds by algebra, whatever the data, so that it checks what was computed.
    """

    sentence: str
    found: str
    holds: bool
    p: float | None = None
    texts: bool = True
    refuted: bool = False
    p_other: float | None = None
    certain: bool = False

    @property
    def verdict(self):
        """ "supported", "refuted", or "not supported" where the data say neither."""
        return "supported" if self.holds else "refuted" if self.refuted else "not supported"

    @property
    def words(self):
        """What is claimed, and what was found."""
        test = "" if self.p is None else f" ({p_words(self.p)}{self._of_the_opposite})"
        whose = "" if self.texts else "this study's own: "
        whose += "by algebra, whatever the data: " if self.certain else ""
        return f"{whose}{self.sentence}; {self.found}{test}."

    @property
    def _of_the_opposite(self):
        known = self.refuted and self.p_other is not None
        return f"; of the opposite {p_words(self.p_other)}" if known else ""

    def record(self):
        """As JSON has it."""
        return asdict(self)


def above(sentence, values, unit="", digits=3, bound=0.0, texts=True, of="seeds"):
    """The claim that the mean of `values`, one for each of the replicates, is above `bound`."""
    values = np.asarray(values, dtype=float)
    p = p_above(values - bound)
    mean, se = mean_se(values)
    than = f" (claimed: above {bound:g})" if bound else ""
    found = f"{mean:.{digits}f} ± {se:.{digits}f}{unit}{than} over {len(values)} {of}"
    return told_by_tests(sentence, found, p, 1 - p, texts)


def told_by_tests(sentence, found, p, p_other, texts=True):
    """The claim that a test of p-value p supports and one the other way round, p_other, refutes."""
    refuted = bool(p_other < LEVEL)
    return Claim(sentence, found, bool(p < LEVEL), float(p), texts, refuted, float(p_other))


def within(sentence, values, bound, unit="", texts=True):
    """The claim that no value, of any seed, is further than `bound` from 0."""
    largest = float(np.abs(np.asarray(values, dtype=float)).max())
    found = f"at most {largest:.2g}{unit}, where {bound:g}{unit} is allowed"
    return Claim(sentence, found, largest <= bound, None, texts, refuted=largest > bound)


def near(sentence, values, target, margin, unit="", digits=3, texts=True, of="seeds"):
    """The claim that the mean of `values`, one for each of the replicates, is near `target`.

    It holds where two one-sided t tests refuse, at LEVEL each, that it is `margin` or more away,
    and is refuted where one says, at LEVEL / 2, that it is.
    """
    off = np.asarray(values, dtype=float) - target
    p = max(p_above(off + margin), p_above(margin - off))
    p_other = 2 * min(p_above(off - margin), p_above(-margin - off))
    mean, se = mean_se(values)
    found = f"{mean:.{digits}f} ± {se:.{digits}f}{unit} (claimed: {target:g} ± {margin:g})"
    return told_by_tests(sentence, f"{found} over {len(off)} {of}", p, p_other, texts)


def p_above(values):
    """p of the one-sided t test that the mean of values (seeds,) is not above 0.

    Raises ZooError for fewer than 2 values: one seed shows no spread.
    """
    values = np.asarray(values, dtype=float)
    require(len(values) >= 2, f"a claim needs at least 2 seeds, got {len(values)}")
    if np.ptp(values) == 0:
        return 0.0 if values[0] > 0 else 1.0
    return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)


def mean_se(values):
    """(mean, standard error) of values (seeds,)."""
    values = np.asarray(values, dtype=float)
    se = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(se)


def p_words(p):
    """ "p = 0.003", or "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"

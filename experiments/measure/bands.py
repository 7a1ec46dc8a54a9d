"""Are ranks uniform? The empirical distribution function against exact simultaneous bands.

Under uniform ranks the counts at the evaluation points form a Markov chain of binomial steps, so
the chance that they all stay inside a band follows by recursion, with no simulation and no
asymptotics, and the test's p-value is exact.
Source: Säilynoja, Bürkner & Vehtari 2022, Graphical test for discrete uniformity and its
    applications in goodness-of-fit evaluation and multiple sample comparison, section 2.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom

NUM_POINTS = 50  # at which the distribution function is judged, at most


@dataclass(frozen=True, eq=False)
class Uniformity:
    """The test for `num_ranks` ranks that are uniform on 0, 1, ..., num_values - 1.

    points: (p,) fractions at which the distribution function is judged; each is exact: the chance
    of a rank below point * num_values.
    """

    num_ranks: int
    num_values: int

    @property
    def points(self):
        return _edges(self.num_values) / self.num_values

    def ecdf(self, ranks):
        """Share of the ranks (num_ranks,) below each point: (p,)."""
        return self._counts(ranks) / self.num_ranks

    def p_value(self, ranks):
        """The chance that uniform ranks stray as far, by their farthest point."""
        tail, counts = _tails(self.num_ranks, self.num_values), self._counts(ranks)
        farthest = tail[counts, np.arange(len(counts))].min()
        return float(min(1, max(0, 1 - self._chance_within(farthest))))

    def band(self, level):
        """Bounds (lower, upper), each (p,), that uniform ranks leave anywhere with chance <= level.

        The least extreme pointwise level with that property, found by bisection.
        """
        return _band(self.num_ranks, self.num_values, level)

    def _counts(self, ranks):
        return (np.asarray(ranks)[:, None] < _edges(self.num_values)).sum(0)

    def _chance_within(self, tail):
        """Chance that each count's own tail probability is above `tail`."""
        inside = _tails(self.num_ranks, self.num_values) > tail
        return _chance(self.num_ranks, self.points, *_ends(inside))


@lru_cache
def _band(num_ranks, num_values, level):
    test = Uniformity(num_ranks, num_values)
    low, high = 0.0, level / 2  # the chance to leave is 0 at low, and at least the level at high
    for _ in range(30):
        middle = (low + high) / 2
        if 1 - test._chance_within(middle) <= level:
            low = middle
        else:
            high = middle
    first, last = _ends(_tails(num_ranks, num_values) > low)
    return first / num_ranks, last / num_ranks


def _edges(num_values):
    """The ranks below which counts are taken: (p,)."""
    steps = np.linspace(0, num_values, min(NUM_POINTS, num_values) + 1)
    return np.unique(steps.round().astype(int))[1:-1]


@lru_cache
def _tails(num_ranks, num_values):
    """The smaller tail probability, min(P(X <= m), P(X >= m)), of every count: (ranks + 1, p)."""
    counts, points = np.arange(num_ranks + 1)[:, None], _edges(num_values) / num_values
    return np.minimum(binom.cdf(counts, num_ranks, points), binom.sf(counts - 1, num_ranks, points))


def _ends(inside):
    """First and last count inside at every point; a first after the last where none is."""
    first, last = inside.argmax(0), len(inside) - 1 - inside[::-1].argmax(0)
    return np.where(inside.any(0), first, 1), np.where(inside.any(0), last, 0)


def _chance(num_ranks, points, first, last):
    """Chance that the counts at all points are within first..last, both inclusive.

    Given m ranks below one point, those between it and the next are binomial: num_ranks - m
    trials with the next step's share of what is left.
    """
    if (first > last).any():
        return 0.0
    log_factorial = gammaln(np.arange(num_ranks + 1) + 1.0)
    counts, chances, before = np.array([0]), np.array([1.0]), 0.0
    for point, lowest, highest in zip(points, first, last, strict=True):
        share = (point - before) / (1 - before)
        following = np.arange(lowest, highest + 1)
        steps = _binomial(following[:, None] - counts, num_ranks - counts, share, log_factorial)
        counts, chances, before = following, steps @ chances, point
    return chances.sum()


def _binomial(successes, trials, share, log_factorial):
    """Binomial probabilities, 0 where the successes are not possible."""
    possible = (successes >= 0) & (successes <= trials)
    hits = np.where(possible, successes, 0)
    misses = trials - hits
    log_choose = log_factorial[trials] - log_factorial[hits] - log_factorial[misses]
    log_chance = log_choose + hits * np.log(share) + misses * np.log1p(-share)
    return np.where(possible, np.exp(log_chance), 0.0)

"""The importance-weighted bound on log p(x), by a sum over draws that keeps nothing.

    log p(x) >= E log 1/k sum_k p(x, z_k) / q(z_k),  z_k ~ q, which rises with k to log p(x).
Source: Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders, eq. 8 and theorem 1.
"""

import math
from dataclasses import dataclass

import torch

from experiments.measure.elbo import draw, latent_names
from zoo.errors import require

FLOATS_AT_ONCE = 2**21  # of draws x rows x columns: what the processor's cache holds
CELLS_AT_ONCE = 2**15  # of draws x rows, where a row is short
DRAWS_AT_ONCE = 128  # an encoder runs once for so many draws of its rows


@dataclass(frozen=True)
class Bound:
    """A Monte Carlo estimate of the log evidence of every unit, which bounds it on average.

    value: (units,) nats in float64.  se: (units,), its standard error from the spread of the
    weights by the delta method, NaN for a single draw.  The units are rows, or one for all rows
    of a joint problem.
    """

    value: torch.Tensor
    se: torch.Tensor
    num_draws: int

    @property
    def mean(self):
        """The mean over units, nats."""
        return self.value.mean().item()

    @property
    def mean_se(self):
        """Standard error of that mean from the draws alone, the units as they are."""
        return self.se.square().sum().sqrt().item() / len(self.se)


def iwae(problem, guide, x, num_draws=5000, seed=0):
    """The importance-weighted bound of every unit of x (n, d): a Bound.

    Log densities enter as they are, never scaled to a minibatch, so that the bound is right for a
    model that subsamples.  The memory depends neither on num_draws nor, beyond a few numbers a
    row, on n; a joint problem needs all rows of one draw at once.
    Raises ZooError for num_draws below 1, unfit rows, or a guide without a density.
    """
    check_count("num_draws", num_draws)
    x = problem.check_support(x)
    latent_names(guide, x)
    seeds = torch.Generator().manual_seed(seed)
    blocks, sizes = _chunks(problem, x, num_draws)
    found = [LogMean() for _ in blocks]
    for mean, block in zip(found, blocks, strict=True):
        for size in sizes:
            fresh = torch.randint(2**62, (), generator=seeds).item()
            draws = draw(problem.model, guide, x, size, fresh, block)
            mean.add(draws.total_log_weight[:, None] if problem.joint else draws.log_weight)
    value, se = (torch.cat(parts) for parts in zip(*(m.result() for m in found), strict=True))
    require(not value.isnan().any(), "log p or log q is NaN at a draw of the guide")
    return Bound(value, se, num_draws)


def _chunks(problem, x, num_draws):
    """Blocks of row numbers, None for all rows at once, and the numbers of draws of one pass."""
    cells = max(1, min(CELLS_AT_ONCE, FLOATS_AT_ONCE // x.shape[-1]))
    if problem.joint:
        blocks, at_once = [None], max(1, cells // len(x))
    else:
        at_once = min(num_draws, DRAWS_AT_ONCE)
        blocks = torch.arange(len(x), device=x.device).split(max(1, cells // at_once))
    return blocks, [min(at_once, num_draws - done) for done in range(0, num_draws, at_once)]


class LogMean:
    """The log of a mean of weights that arrive in parts, and its standard error.

    Sums are kept relative to the largest weight so far, so that nothing overflows.
    """

    def __init__(self):
        self.count, self.top, self.total, self.squares = 0, -math.inf, 0.0, 0.0

    def add(self, log_weights):
        """Take in log weights (draws, units)."""
        log_weights = log_weights.double()
        top = log_weights.amax(0).clamp(min=self.top)
        finite = torch.where(top == -math.inf, 0.0, top)
        shrink, weights = (self.top - finite).exp(), (log_weights - finite).exp()
        self.total = self.total * shrink + weights.sum(0)
        self.squares = self.squares * shrink**2 + weights.square().sum(0)
        self.top, self.count = top, self.count + len(log_weights)

    def result(self):
        """log mean weight and the delta method's standard error of it, both (units,).

        The error is sd(w) / (sqrt(k) mean(w)), NaN for one weight or where all are zero.
        """
        mean = self.total / self.count
        spread = (self.squares / self.count - mean.square()).clamp(min=0)
        degrees = self.count - 1 if self.count > 1 else math.nan
        return self.top + mean.log(), (spread / degrees).sqrt() / mean


def log_mean(log_weights):
    """`LogMean` of log weights (draws, units) that are all there: two (units,)."""
    whole = LogMean()
    whole.add(log_weights)
    return whole.result()


def check_count(name, number, least=1):
    """Refuse anything but a whole number of at least `least`."""
    require(
        type(number) is int and number >= least,
        f"{name} must be a whole number of at least {least}, got {number!r}",
    )

"""Prior and posterior predictive checks: do data like these come from the model?

A test statistic of the data is compared with its distribution over replicated data.
Source: Gelman, Meng & Stern 1996, Posterior predictive assessment of model fitness, section 2.3;
    Box 1980, Sampling and Bayes' inference in scientific modelling, for the prior.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyro import poutine

from experiments.measure.pairs import Pair, draw_pair
from experiments.measure.whole import fitted_pairs, surroundings
from zoo.errors import explained, require, unknown

STATISTICS = {
    "mean": np.mean,
    "sd": np.std,
    "variance": np.var,
    "min": np.min,
    "max": np.max,
    "median": np.median,
    "zeros": lambda x: np.mean(x == 0),
    # Depends on how the columns vary together, which the statistics of single entries do not.
    "sd_of_row_sums": lambda x: np.std(x.reshape(len(x), -1).sum(1)),
}


@dataclass(frozen=True)
class Check:
    """One statistic: its value on the data, and where replicated data have it.

    low and high: the central interval over replicated data.  p_value: two-sided, twice the smaller
    of both tails, each with the observed value; se: its Monte Carlo standard error.
    """

    statistic: str
    observed: float
    mean: float
    low: float
    high: float
    p_value: float
    se: float


def check(replicated, observed, statistics=("mean", "sd", "min", "max"), interval=0.9):
    """A Check for every test statistic.

    replicated: (draws, ...) or (chain, draw, ...), tensor or array; observed: (...).
    statistics: names of STATISTICS, or {name: function of one data set (...)} to a number.
    p-values of the posterior predictive are nearer to 1/2 than uniform, as the data have been used
    twice; those of the prior predictive are uniform under the model.
    Raises ZooError for arrays that do not match, values that are not finite, unknown statistics.
    """
    replicated, observed = _array(replicated), _array(observed)
    extra = replicated.ndim - observed.ndim
    matching = extra >= 1 and replicated.shape[extra:] == observed.shape
    require(
        matching,
        f"replicated data are draws of the observed, (draws, {_sizes(observed)}): got shape "
        f"({_sizes(replicated)})",
    )
    require(observed.size, "there are no observed data to check")
    require(0 < interval < 1, f"interval must be between 0 and 1, got {interval}")
    replicated = replicated.reshape(-1, *observed.shape)
    require(len(replicated) >= 2, f"a check needs at least 2 draws, got {len(replicated)}")
    for what, values in (("observed", observed), ("replicated", replicated)):
        require(np.isfinite(values).all(), f"{what} data have a value that is not finite")
    return [
        _check(name, statistic, replicated, observed, interval)
        for name, statistic in _named(statistics).items()
    ]


def table(checks):
    """The checks as a Markdown table."""
    head = "| statistic | observed | mean | low | high | p-value |"
    rows = [
        f"| {c.statistic} | {c.observed:.4g} | {c.mean:.4g} | {c.low:.4g} | {c.high:.4g} | "
        f"{c.p_value:.3f} |"
        for c in checks
    ]
    return "\n".join([head, "|---|---:|---:|---:|---:|---:|", *rows])


def posterior_predictive(
    model, guide, *args, num_draws=1000, seed=0, parallel=False, params=None, kwargs=None
):
    """Replicated data at the guide's draws: {observed site: (draws, plates, event)}.

    The guide may have points, as AutoDelta's are.  params: as `experiments.from_svi` takes them.
    """
    pair = _pair(model, guide, args, kwargs, params)
    draws = draw_pair(pair, num_draws, seed, parallel, prior=False, densities=False)
    return _numbers(draws.posterior_predictive)


def prior_predictive(
    model, guide, *args, num_draws=1000, seed=0, parallel=False, params=None, kwargs=None
):
    """Data from the prior: {observed site: (draws, plates, event)}.

    guide: takes no part, and may be None.  params: as `experiments.from_svi` takes them.
    """
    pair = _pair(model, _prior(model), args, kwargs, params)
    with surroundings(seed, pair.state, pair.device), explained("the prior cannot be drawn"):
        pair.call(pair.guide)()
    draws = draw_pair(pair, num_draws, seed, parallel, predictive=False, densities=False)
    return _numbers(draws.prior_predictive)


def _pair(model, guide, args, kwargs, params):
    state = [params] if isinstance(params, dict) else params
    require(
        state is None or (isinstance(state, list | tuple) and len(state) == 1),
        "params are one state of Pyro's store: pyro.get_param_store().get_state()",
    )
    return fitted_pairs([Pair(model, guide, args, kwargs or {})], state)[0]


def _prior(model):
    """The prior as a guide, which suits every model."""
    return poutine.block(model, hide_fn=lambda site: site.get("is_observed", False))


def _numbers(group):
    for name, (_, values) in group.items():
        require(not values.isnan().any(), f"replicated data of {name!r} have a value that is NaN")
    return {name: values for name, (_, values) in group.items()}


def _check(name, statistic, replicated, observed, interval):
    with explained(f"statistic {name!r} does not give a number"):
        ours = float(statistic(observed))
        theirs = np.array([float(statistic(data)) for data in replicated])
    finite = math.isfinite(ours) and np.isfinite(theirs).all()
    require(finite, f"statistic {name!r} is not finite on the data or on a replicate")
    low, high = np.quantile(theirs, [(1 - interval) / 2, (1 + interval) / 2])
    # Rounding must not tell apart what is equal, as the share of zeros in counts.
    slack = 1e-6 * max(abs(ours), np.abs(theirs).max())
    # The data are one more replicate under the model, which keeps p above 0.
    tails = [((theirs >= ours - slack).sum() + 1), ((theirs <= ours + slack).sum() + 1)]
    tail = float(min(tails)) / (len(theirs) + 1)
    se = 2 * math.sqrt(tail * (1 - min(tail, 1)) / len(theirs))
    return Check(name, ours, float(theirs.mean()), float(low), float(high), min(1.0, 2 * tail), se)


def _named(statistics):
    if isinstance(statistics, dict):
        named = statistics
    else:
        names = [statistics] if isinstance(statistics, str) else list(statistics)
        for name in names:
            if name not in STATISTICS:
                raise unknown("statistic", name, STATISTICS)
        named = {name: STATISTICS[name] for name in names}
    require(named, "a check needs at least one statistic")
    for name, statistic in named.items():
        require(callable(statistic), f"statistic {name!r} must be a function, got {statistic!r}")
    return named


def _array(values):
    values = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, dtype=float)


def _sizes(array):
    return ", ".join(map(str, array.shape))

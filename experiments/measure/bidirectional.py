"""Bidirectional Monte Carlo: log p(x) of simulated data between two bounds.

A datum drawn from the model comes with the latents that made it, an exact draw of its posterior.
Chains down the path from there have E[1 / weight] = 1 / p(x), so the log of the harmonic mean of
their weights bounds log p(x) from above on average, as chains up the path do from below.
Source: Grosse, Ghahramani & Adams 2015, Sandwiching the marginal likelihood using bidirectional
    Monte Carlo, section 4; Wu et al. 2017, section 3.2, on what that says of real data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro

import guides
from experiments.measure.annealing import ais, anneal, can_start, settled, ways
from experiments.measure.evidence import Bound, check_count, iwae, log_mean
from experiments.measure.rows import fit_rows
from experiments.measure.simulation import simulate, training_rows
from experiments.measure.streams import seeds, stream
from zoo.problem import base_distribution, sample_sites


@dataclass(frozen=True)
class TwoSided:
    """Bounds on the log evidence of simulated units, from below and from above.

    x: (n, d) the simulated rows, latents: {name: (n, ...)} what made them; for a joint problem
    every unit is a data set, so x is (units, n, d) and what stands outside the plate (units, ...).
    guide: where the paths began, with an answer for x; None where that was the prior.
    """

    lower: Bound
    upper: Bound
    x: torch.Tensor
    latents: dict
    guide: Callable | None

    @property
    def width(self):
        """upper - lower of every unit: (units,) nats."""
        return self.upper.value - self.lower.value


@dataclass(frozen=True)
class Interval:
    """What is known of the mean log evidence of real data, nats a unit.

    lower: a Bound, by the named method, "importance" or "annealing", whichever was higher on
    average.  width: the mean distance between that method's bound and the upper one on data
    simulated from the model, and its standard error over these.  A joint problem's upper end is
    that of annealing from the prior, whichever method is the lower one's.
    """

    lower: Bound
    method: str
    width: float
    width_se: float

    @property
    def upper(self):
        """lower.mean + width.  Not a bound: it takes real data to be as hard as simulated."""
        return self.lower.mean + self.width


def bdmc(problem, guide=None, num_units=100, seed=0, **setting):
    """Two-sided bounds on the log evidence of units simulated from the model: TwoSided.

    guide: where the paths start, the prior where None; a table is fitted to the simulated rows.
    A joint problem is simulated num_units times as long as its training data, and its paths start
    from the prior, for what a guide learned of shared latents holds for one data set only.
    The standard error of an upper bound is of its chains, which share one draw of the posterior.
    setting: as for `experiments.measure.annealing.ais`.
    """
    setting = settled(problem, setting)
    check_count("num_units", num_units)
    sets, num_rows = (num_units, len(problem.data.train)) if problem.joint else (1, num_units)
    guide = None if problem.joint else guide
    drawn = [simulated_rows(problem, num_rows, own) for own in seeds(seed, sets)]
    with stream(seed, problem.data.train.device):
        starts = [answering(problem, guide, x) for x, _ in drawn]
        pairs = [
            anneal(way, setting, {name: v[None, block] for name, v in latents.items()})
            for (x, latents), start in zip(drawn, starts, strict=True)
            for block, way in ways(problem, x, start, setting)
        ]
    up, down = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
    value, se = log_mean(-down)
    bounds = Bound(*log_mean(up), len(up)), Bound(-value, se, len(up))
    if not problem.joint:
        return TwoSided(*bounds, *drawn[0], *starts)
    latents = {name: torch.stack([d[1][name] for d in drawn]) for name in drawn[0][1]}
    return TwoSided(*bounds, torch.stack([x for x, _ in drawn]), latents, None)


def evidence_interval(problem, guide, x, num_draws=5000, num_units=100, seed=0, **setting):
    """A lower bound on the mean log evidence of x (n, d), and how far up the truth may be.

    Importance weighting with num_draws draws and annealing each give a lower bound on x.  The
    width comes from data simulated from the model, where there are bounds from both sides.  It is
    honest of real data as far as the model fits them; see Interval.upper.  Annealing starts from
    the guide where it can, else from the best diagonal normals or the prior: see `_start`.
    Returns an Interval.  Raises ZooError as `iwae` and `ais` do.
    """
    importance = iwae(problem, guide, x, num_draws, seed)
    start = _start(problem, guide, x)
    annealing = ais(problem, x, start, seed, **setting)
    simulated = bdmc(problem, start, num_units, seed + 1, **setting)
    width, chosen, method = simulated.width, annealing, "annealing"
    if importance.mean > annealing.mean:
        chosen, method = importance, "importance"
        if problem.joint:  # the upper end stays that of annealing
            width = width - (importance.mean - annealing.mean)
        else:
            own = simulated.guide if start is guide else answering(problem, guide, simulated.x)
            width = simulated.upper.value - iwae(problem, own, simulated.x, num_draws, seed).value
    se = width.std().item() / math.sqrt(len(width)) if len(width) > 1 else math.nan
    return Interval(chosen, method, width.mean().item(), se)


def _start(problem, guide, x):
    """Where annealing for rows x starts: the guide, or one that is better suited.

    None, the prior, for a joint problem, whose guide holds for one data set only.  A guide of
    independent normals, fitted to x, in place of one that draws more than the latents, or of a
    flow, whose density of a given value takes as many passes as there are numbers.
    """
    if problem.joint:
        return None
    if can_start(problem, guide, x) and not _has_flow(guide, x):
        return guide
    if any(latent.support.is_discrete for latent in problem.latents):
        return None
    return fit_rows(problem, guides.build("mean_field", problem), x).guide


def _has_flow(guide, x):
    with stream(0, x.device), torch.no_grad():
        sites = sample_sites(poutine.trace(guide).get_trace(x))
    return any(isinstance(base_distribution(site["fn"]), ZukoToPyro) for site in sites)


def simulated_rows(problem, num_rows, seed):
    """Rows (num_rows, d) drawn from the model, and the latents {name: (num_rows, ...)} behind them.

    Latents outside the plate are drawn once, and come as (1, ...).
    """
    latents, _, x = simulate(problem, training_rows(problem, num_rows), seed)
    shared = {latent.name for latent in problem.latents if not latent.local}
    return x, {name: v[None] if name in shared else v for name, v in latents.items()}


def answering(problem, guide, x):
    """The guide itself, or for a table one fitted to the rows of x."""
    if guide is None:
        return None
    return (
        fit_rows(problem, guide, x, restarts=1).guide if getattr(guide, "tabular", False) else guide
    )

"""Bidirectional Monte Carlo: log p(x) of simulated data between two bounds.

A datum drawn from the model comes with the latents that made it, an exact draw of its posterior.
Chains down the path from there have E[1 / weight] = 1 / p(x), so the log of the harmonic mean of
their weights bounds log p(x) from above on average, as chains up the path do from below.
Source: Grosse, Ghahramani & Adams 2015, Sandwiching the marginal likelihood using bidirectional
    Monte Carlo, section 4; Wu et al. 2017, section 3.2, on what that says of real data.
"""

import math
from dataclasses import dataclass

import torch
from pyro import poutine

from experiments.measure.annealing import ais, anneal, settled, stream, ways
from experiments.measure.evidence import Bound, check_count, iwae, log_mean
from experiments.measure.rows import Frozen, fit_rows
from zoo.errors import explained, require
from zoo.problem import sample_sites


@dataclass(frozen=True)
class TwoSided:
    """Bounds on the log evidence of simulated units, from below and from above.

    x: (n, d) the simulated rows, latents: {name: (n, ...)} what made them; for a joint problem
    every unit is a data set, so x is (units, n, d) and what stands outside the plate (units, ...).
    """

    lower: Bound
    upper: Bound
    x: torch.Tensor
    latents: dict

    @property
    def width(self):
        """upper - lower of every unit: (units,) nats."""
        return self.upper.value - self.lower.value


@dataclass(frozen=True)
class Interval:
    """What is known of the mean log evidence of real data, nats a unit.

    lower: a Bound, by the named method, "importance" or "annealing", whichever was higher on
    average.  width: the mean distance between that method's bound and the upper one on data
    simulated from the model, and its standard error over these.
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
    with stream(seed, problem.data.train):
        drawn = [simulate(problem, num_rows) for _ in range(sets)]
        guides = [answering(problem, guide, x) for x, _ in drawn]
        pairs = [
            anneal(way, setting, {name: v[None, block] for name, v in latents.items()})
            for (x, latents), start in zip(drawn, guides, strict=True)
            for block, way in ways(problem, x, start, setting)
        ]
    up, down = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
    value, se = log_mean(-down)
    bounds = Bound(*log_mean(up), len(up)), Bound(-value, se, len(up))
    if not problem.joint:
        return TwoSided(*bounds, *drawn[0])
    latents = {name: torch.stack([d[1][name] for d in drawn]) for name in drawn[0][1]}
    return TwoSided(*bounds, torch.stack([x for x, _ in drawn]), latents)


def evidence_interval(problem, guide, x, num_draws=5000, num_units=100, seed=0, **setting):
    """A lower bound on the mean log evidence of x (n, d), and how far up the truth may be.

    Importance weighting with num_draws draws and annealing from the guide each give a lower bound
    on x.  The width comes from data simulated from the model, where there are bounds from both
    sides.  It is honest of real data as far as the model fits them; see Interval.upper.
    Returns an Interval.  Raises ZooError as `iwae` and `ais` do.
    """
    below = {
        "importance": iwae(problem, guide, x, num_draws, seed),
        "annealing": ais(problem, x, guide, seed, **setting),
    }
    method = max(below, key=lambda name: below[name].mean)
    simulated = bdmc(problem, guide, num_units, seed + 1, **setting)
    width = simulated.width
    if method == "importance" and not problem.joint:
        start = answering(problem, guide, simulated.x)
        width = simulated.upper.value - iwae(problem, start, simulated.x, num_draws, seed).value
    se = width.std().item() / math.sqrt(len(width)) if len(width) > 1 else math.nan
    return Interval(below[method], method, width.mean().item(), se)


def simulate(problem, num_rows):
    """Rows (num_rows, d) drawn from the model, and the latents {name: (num_rows, ...)} behind them.

    Columns that the model does not observe, such as covariates, are those of the training rows,
    over and over.  Latents outside the plate are drawn once, and come as (1, ...).
    Raises ZooError where the likelihood observes anything else than entries of the rows.
    """
    template = problem.data.train
    template = template[torch.arange(num_rows, device=template.device) % len(template)]
    model, x = Frozen(problem.model), template.clone()
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(template)
    for name, cells in _observed_cells(problem, model, template).items():
        x.view(-1)[cells] = trace.nodes[name]["value"].to(x).reshape(-1)
    found = {
        name: trace.nodes[name]["value"] for name in (latent.name for latent in problem.latents)
    }
    shared = {latent.name for latent in problem.latents if not latent.local}
    return x, {name: value[None] if name in shared else value for name, value in found.items()}


def _observed_cells(problem, model, x):
    """Which entries of x.flatten() every likelihood site observes, found by numbering them."""
    numbers = torch.arange(x.numel(), device=x.device, dtype=torch.float64).reshape(x.shape)
    wrong = f"{problem.name} cannot be simulated: its likelihood must observe entries of the rows"
    with explained(wrong), torch.no_grad():
        trace = poutine.trace(model).get_trace(numbers)
        values = {s["name"]: s["value"] for s in sample_sites(trace) if s["is_observed"]}
    cells = {name: value.reshape(-1).double() for name, value in values.items()}
    every = torch.cat(list(cells.values()))
    good = (every == every.long()).all() and every.unique().numel() == every.numel()
    require(good and every.min() >= 0 and every.max() < x.numel(), wrong)
    return {name: cell.long() for name, cell in cells.items()}


def answering(problem, guide, x):
    """The guide itself, or for a table one fitted to the rows of x."""
    if guide is None:
        return None
    return fit_rows(problem, guide, x).guide if getattr(guide, "tabular", False) else guide

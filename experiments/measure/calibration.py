"""Simulation-based calibration: are a guide's intervals as wide as it says, on average over data?

Simulate latents and data from the model, ask the guide for its answer to the data, and rank the
true latent among draws of the answer.  Where the answer is the exact posterior the ranks are
uniform.  Besides every coordinate the log joint density is ranked, which sees what no coordinate
does alone, and which does not depend on how the values of a discrete latent are called.
Source: Talts et al. 2018, Validating Bayesian inference algorithms with simulation-based
    calibration, algorithm 1; Modrak et al. 2023, Simulation-based calibration checking for
    Bayesian computation: the choice of test quantities shapes sensitivity.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch

from experiments.measure.bands import Uniformity
from experiments.measure.elbo import Estimate, draw
from experiments.measure.frozen import Frozen
from experiments.measure.rows import RULE, fit_rows, joint_config
from experiments.measure.simulation import simulate, training_rows
from experiments.measure.streams import seeds, stream
from experiments.svi.loop import train
from experiments.svi.run import Run, reset
from zoo.errors import explained, require

INTERVALS = (0.5, 0.9)  # nominal central intervals
RANKS_APART = 20  # intervals end between ranks where num_draws + 1 is a multiple of this
ROWS_OF_JOINT = 8  # rows of a joint problem whose own latents are ranked
TIE = 1e-5  # relative difference of log densities below which they are equal: float32 rounding


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truth among a guide's draws, and what they say.

    ranks: {quantity: (num_simulations,) from 0 to num_draws}; level: chance of refusing an exact
    guide, over all quantities together.
    """

    ranks: dict
    num_draws: int
    level: float

    @property
    def uniformity(self):
        """The test of the ranks, which also has the points and bands of a figure."""
        return Uniformity(len(next(iter(self.ranks.values()))), self.num_draws + 1)

    @cached_property
    def p_values(self):
        """{quantity: exact p-value of uniform ranks}."""
        return {name: self.uniformity.p_value(ranks) for name, ranks in self.ranks.items()}

    @cached_property
    def adjusted(self):
        """The same after Holm's correction for the number of quantities."""
        return holm(self.p_values)

    @property
    def refused(self):
        """Names of the quantities whose ranks are not uniform at the level."""
        return tuple(name for name, value in self.adjusted.items() if value <= self.level)

    @property
    def calibrated(self):
        """Whether no quantity is refused."""
        return not self.refused

    @cached_property
    def coverage(self):
        """{quantity: {nominal: Estimate}} of central intervals; the se is binomial."""
        return {
            name: {nominal: self._covered(ranks, nominal) for nominal in INTERVALS}
            for name, ranks in self.ranks.items()
        }

    def ecdf_difference(self, name):
        """Distribution function of the ranks minus the uniform one, at the points: (p,)."""
        return self.uniformity.ecdf(self.ranks[name]) - self.uniformity.points

    def band(self):
        """Bounds of the difference, each (p,), at the level divided by the number of quantities."""
        lower, upper = self.uniformity.band(self.level / len(self.ranks))
        return lower - self.uniformity.points, upper - self.uniformity.points

    def summary(self):
        """The verdict and a row for every quantity, as plain numbers for tables and figures."""
        rows = []
        for name in self.ranks:
            row = {"quantity": name, "p_value": self.p_values[name]}
            row["adjusted_p_value"] = self.adjusted[name]
            for nominal, found in self.coverage[name].items():
                row[f"coverage_{nominal:.0%}"[:-1]] = found.value
                row[f"coverage_{nominal:.0%}"[:-1] + "_se"] = found.se
            rows.append(row)
        return {
            "calibrated": self.calibrated,
            "p_value": min(self.adjusted.values()),
            "level": self.level,
            "num_simulations": self.uniformity.num_ranks,
            "num_draws": self.num_draws,
            "quantities": rows,
        }

    def _covered(self, ranks, nominal):
        edge = round((1 - nominal) / 2 * (self.num_draws + 1))
        inside = (ranks >= edge) & (ranks <= self.num_draws - edge)
        share = inside.double().mean().item()
        return Estimate(share, math.sqrt(share * (1 - share) / len(ranks)))


def calibrate(problem, guide, num_simulations=1000, num_draws=99, seed=0, level=0.05, rule=RULE):
    """Simulation-based calibration of a guide under the model's parameters as they are.

    A guide that answers new data does so in one pass; a table gets rows fitted to every
    simulated datum.  A joint problem is simulated as a whole, as many rows as it has to
    train on, and the guide fitted anew to each by `rule`: that costs num_simulations fits in turn,
    so take fewer of both.  Returns a Calibration.

    Raises ZooError for no simulation, numbers of draws between whose ranks no 50 % and 90 %
    intervals end, or a likelihood whose rows cannot be simulated.
    """
    _check(num_simulations, num_draws, level)
    if problem.joint:
        ranks = _joint_ranks(problem, guide, num_simulations, num_draws, seed, rule)
    else:
        first, second, third = seeds(seed, 3)
        like = training_rows(problem, num_simulations)
        truth, log_p, x = simulate(problem, like, first)
        answer = _answer(problem, guide, x)
        with explained(f"the guide does not run on {num_simulations} simulated rows"):
            draws = draw(problem.model, answer, x, num_draws, second)
        found = _quantities(problem, draws.latents, draws.log_p.double(), lead=2)
        ranks = _ranks(found, _quantities(problem, truth, log_p, lead=1), third)
    return Calibration(ranks, num_draws, level)


def holm(p_values):
    """{name: p-value after Holm's correction}: a name is refused where it is at most the level.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, largest = {}, 0.0
    for place, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * value))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _answer(problem, guide, x):
    """A guide with an answer for the simulated rows x."""
    if getattr(guide, "tabular", False):
        return fit_rows(problem, guide, x, restarts=1).guide
    return guide


def _joint_ranks(problem, guide, num_simulations, num_draws, seed, rule):
    """Ranks of a joint problem, simulated and fitted once for each."""
    each = []
    for own in seeds(seed, num_simulations):
        first, second, third, fourth = seeds(own, 4)
        truth, log_p, x = simulate(problem, problem.data.train, first)
        answer = _refit(problem, guide, x, rule, fourth)
        draws = draw(problem.model, answer, x, num_draws, second)
        total = draws.log_p.double().sum(1) + draws.shared_log_p
        found = _quantities(problem, draws.latents, total, lead=1)
        each.append(_ranks(found, _quantities(problem, truth, log_p, lead=0), third))
    return {name: torch.stack([ranks[name] for ranks in each]) for name in each[0]}


def _refit(problem, guide, x, rule, seed):
    """The guide's family fitted to x from a fresh start; a guide without parameters as it is."""
    if next(guide.parameters(), None) is None:
        return guide
    fresh = deepcopy(guide).requires_grad_(True).train()
    config = joint_config(rule, problem, x)
    with stream(seed, x.device):
        reset(fresh)
        train(Run(Frozen(problem.model), fresh, x, config, seed), problem)
    return fresh.eval()


def _quantities(problem, latents, log_p, lead):
    """{quantity: values} of latents and log p(x, z): a coordinate each, and "log_joint".

    lead: number of dimensions before a coordinate's own; the rows of a joint problem are its own.
    The values of a finite discrete latent are left out: they are names, which have no order.
    """
    found = {}
    for latent in problem.latents:
        if latent.support.is_discrete and latent.num_values is not None:
            continue
        values = latents[latent.name]
        if problem.joint and latent.local:
            values = values.narrow(lead, 0, min(ROWS_OF_JOINT, values.shape[lead]))
        for where in product(*map(range, values.shape[lead:])):
            name = f"{latent.name}[{','.join(map(str, where))}]" if where else latent.name
            found[name] = values[(..., *where)]
    return found | {"log_joint": log_p}


def _ranks(draws, truth, seed):
    """{quantity: rank of the truth (...) among draws (num_draws, ...)}, at random among ties."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, true in truth.items():
        margin = TIE * true.abs().clamp(min=1) if name == "log_joint" else 0
        below = (draws[name] < true - margin).sum(0)
        tied = (draws[name] <= true + margin).sum(0) - below
        luck = torch.rand(below.shape, generator=generator, dtype=torch.float64)
        found[name] = (below.cpu() + (luck * (tied.cpu() + 1)).long()).clamp(max=len(draws[name]))
    return found


def _check(num_simulations, num_draws, level):
    require(
        type(num_simulations) is int and num_simulations >= 1,
        f"num_simulations must be a whole number of at least 1, got {num_simulations!r}",
    )
    require(
        type(num_draws) is int and num_draws >= 1 and (num_draws + 1) % RANKS_APART == 0,
        "num_draws must be 19, 39, 59, ..., so that intervals of 50 % and 90 % end between ranks, "
        f"got {num_draws!r}",
    )
    require(0 < level < 1, f"level must be between 0 and 1, got {level!r}")

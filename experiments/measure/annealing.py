"""Annealed importance sampling: log p(x) along a path of densities from prior or guide to p(x, z).

Chains start at independent draws and are moved by transitions that leave each density of the path
invariant: HMC for continuous latents, the exact conditional for a finite discrete one, for longer
discrete vectors a sweep that draws every entry given the others.  The mean of the weights is p(x)
exactly, so its log bounds log p(x) from below on average.
Temperatures and step sizes come from a pilot run, which ends before the chains start: adapting
them along the chains themselves would bias the weights.
Source: Neal 2001, Annealed importance sampling, eq. 3-11;
    Wu et al. 2017, On the quantitative analysis of decoder-based generative models, section 3.
"""

from dataclasses import dataclass

import torch

from experiments.measure.elbo import latent_names
from experiments.measure.evidence import Bound, check_count, log_mean
from experiments.measure.hmc import hmc, pilot
from experiments.measure.path import Continuous, Entries, Finite, kind, path
from experiments.measure.streams import stream
from zoo.errors import require, unknown

FLOATS_AT_ONCE = 2**20  # of chains x rows x columns
TABLE_FLOATS = 2**24  # of values x rows x columns, once for all temperatures
PILOT_CHAINS = 8
STEEPNESS = 4.0  # of the temperatures of a finite latent, towards both ends


@dataclass(frozen=True)
class Setting:
    """How to anneal: chains a unit, steps from the start to the joint, leapfrog steps of a move."""

    num_chains: int = 16
    num_temperatures: int = 100
    num_leapfrog: int = 5

    def __post_init__(self):
        for name, value in vars(self).items():
            check_count(name, value)


def ais(problem, x, guide=None, seed=0, **setting):
    """A lower bound on log p(x) of every unit of x (n, d) by annealing: a Bound.

    guide: where the path starts; the prior where None.  setting: num_chains, num_temperatures and
    num_leapfrog; one temperature is plain importance sampling.  Runs in the model's dtype.
    Raises ZooError for discrete latents that no path suits (see path.py), unfit rows, or a guide
    without a density.
    """
    setting = settled(problem, setting)
    x = problem.check_support(x)
    check_start(problem, guide, x)
    with stream(seed, x.device):
        parts = [anneal(way, setting)[0] for _, way in ways(problem, x, guide, setting)]
    return Bound(*log_mean(torch.cat(parts, 1)), setting.num_chains)


def anneal(way, setting, truth=None):
    """Log weights (chains, units) float64 of chains up the path, and of chains down or None.

    truth: values of the latents, {name: (1, n, ...)}, that are exact draws of the posterior,
    from which chains go down the path.
    """
    betas, move = _plan(way, setting)
    inner = range(1, setting.num_temperatures)
    state = way.draw(setting.num_chains)
    up = betas[1] * state.slope
    for t in inner:
        state = move(state, t)
        up = up + (betas[t + 1] - betas[t]) * state.slope
    if truth is None:
        return up, None
    state = way.at({k: v.expand(setting.num_chains, *v.shape[1:]) for k, v in truth.items()})
    down = (1 - betas[-2]) * state.slope
    for t in reversed(inner):
        state = move(state, t)
        down = down + (betas[t] - betas[t - 1]) * state.slope
    return up, down


def _plan(way, setting):
    """The inverse temperatures, and move(state, t): a transition at the t-th of them."""
    if not isinstance(way, Continuous):
        betas = sigmoid(setting.num_temperatures)
        move = sweep if isinstance(way, Entries) else gibbs
        return betas, lambda state, t: move(way, state, betas[t])
    if setting.num_temperatures == 1:
        return [0.0, 1.0], None
    plan = pilot(way, setting.num_temperatures, PILOT_CHAINS, setting.num_leapfrog)
    betas, tunings = plan.betas, plan.tunings
    return betas, lambda state, t: hmc(way, state, betas[t], tunings[t], setting.num_leapfrog)[0]


def sigmoid(num_steps):
    """num_steps + 1 inverse temperatures from 0 to 1, dense at both ends."""
    line = torch.linspace(-1, 1, num_steps + 1, dtype=torch.float64)
    curve = (STEEPNESS * line).sigmoid()
    return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


def gibbs(way, state, beta):
    """A fresh draw of a finite latent from the path's density at beta."""
    tempered = (1 - beta) * way.start + beta * way.joint
    draws = torch.distributions.Categorical(logits=tempered.T).sample((len(state.u),))
    return way.evaluate(draws)


def sweep(way, state, beta):
    """Every entry in turn drawn from the path's density at beta given the others.

    Source: Geman & Geman 1984, Stochastic relaxation, Gibbs distributions, and the Bayesian
    restoration of images.
    """
    for place in range(len(way.counts)):
        options = list(way.turned(state, place))
        logits = torch.stack([option.log_density(beta) for option in options])
        below = logits.softmax(0).cumsum(0)[:-1]
        drawn = (torch.rand_like(logits[0]) > below).sum(0)
        for number, option in enumerate(options[1:], 1):
            state = state.replaced(option, drawn == number)
    return state


def ways(problem, x, guide, setting):
    """Blocks of rows and the path of each, so that memory is bounded; joint rows are one block."""
    if problem.joint:
        return [(slice(None), path(problem, x, guide))]
    at_once = FLOATS_AT_ONCE // (setting.num_chains * x.shape[-1])
    if kind(problem) is Finite:
        at_once = min(at_once, TABLE_FLOATS // (problem.latents[0].num_values * x.shape[-1]))
    blocks = torch.arange(len(x), device=x.device).split(max(1, at_once))
    return ((block, path(problem, x, guide, block)) for block in blocks)


def settled(problem, setting):
    """The Setting, after refusing a problem that cannot be annealed."""
    kind(problem)
    for name in setting:
        if name not in Setting.__dataclass_fields__:
            raise unknown("setting", name, list(Setting.__dataclass_fields__))
    return Setting(**setting)


def can_start(problem, guide, x):
    """Whether chains can start from the guide: its sites are the latents, and nothing else."""
    return latent_names(guide, x) == {latent.name for latent in problem.latents}


def check_start(problem, guide, x):
    """Refuse a guide that chains cannot start from."""
    if guide is not None:
        require(
            can_start(problem, guide, x),
            "annealing cannot start from a guide with auxiliary latents; start from the prior: "
            "guide=None",
        )

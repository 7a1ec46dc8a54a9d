"""Hamiltonian Monte Carlo of many chains and units at once, and the pilot run that sets it.

Source: Neal 2011, MCMC using Hamiltonian dynamics, sections 3.2, 4.1 and 5.4.2.
"""

from dataclasses import dataclass

import torch

TARGET = 0.65  # acceptance at which a step costs least; Neal 2011, section 5.4.4
GAIN = 0.4  # of the log step size per unit of acceptance above the target
KEPT = 0.9  # of the variance from one density to the next
SETTLING = 10  # transitions at the start before anything is noted
LEAST, POWER = 30, 4  # of the pilot's own steps: their number, and how dense they are near 0


@dataclass(frozen=True)
class Tuning:
    """step: (units,) leapfrog step size, scale: (units, size) in these units of each coordinate."""

    step: torch.Tensor
    scale: torch.Tensor


def hmc(path, state, beta, tuning, num_leapfrog):
    """One transition that leaves the path's density at beta invariant: state, acceptance.

    Step sizes are spread by a tenth or two at random, so that no orbit is periodic.
    """
    jitter = 0.8 + 0.4 * torch.rand_like(state.log_start)
    step = (tuning.step * jitter)[..., None] * tuning.scale
    momentum = torch.randn_like(state.u)
    new, end = leapfrog(path, state, momentum, beta, step, num_leapfrog)
    before = state.log_density(beta) - 0.5 * momentum.square().sum(-1)
    after = new.log_density(beta) - 0.5 * end.square().sum(-1)
    log_ratio = (after - before).nan_to_num(nan=-torch.inf)
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    return state.replaced(new, accepted), log_ratio.clamp(max=0).exp()


def leapfrog(path, state, momentum, beta, step, num_steps):
    """State and momentum after some leapfrog steps (chains, units, size) of the given sizes."""
    momentum = momentum + 0.5 * step * state.gradient(beta)
    for left in reversed(range(num_steps)):
        state = path.evaluate(state.u + step * momentum)
        momentum = momentum + (1.0 if left else 0.5) * step * state.gradient(beta)
    return state, momentum


@dataclass(frozen=True)
class Plan:
    """Inverse temperatures from 0 to 1, and the Tuning of a transition at each."""

    betas: list
    tunings: list


def pilot(path, num_steps, num_chains, num_leapfrog):
    """The Plan of a path of so many steps, from chains that are thrown away.

    Scales are the chains' spread, step sizes follow the acceptance.  Steps along the path are of
    equal length where the sd of the slope, what the log density gains per unit of beta, measures
    length: Gelman & Meng 1998, eq. 44.  All of it is fixed before any chain that counts starts,
    so those are exact whatever the pilot did.
    """
    trial = torch.linspace(0, 1, max(num_steps, LEAST) + 1, dtype=torch.float64) ** POWER
    state = path.draw(num_chains)
    variance = state.u.var(0)
    log_step = torch.full_like(state.log_start[0], -0.5)
    tunings, spreads = [], []
    for beta in [0.0] * SETTLING + trial.tolist():
        tunings.append(Tuning(log_step.exp(), variance.clamp(min=1e-12).sqrt()))
        state, acceptance = hmc(path, state, beta, tunings[-1], num_leapfrog)
        log_step = (log_step + GAIN * (acceptance.mean(0) - TARGET)).clamp(-12, 1)
        variance = KEPT * variance + (1 - KEPT) * state.u.var(0)
        spreads.append(state.slope.var(0).mean().sqrt())
    betas = equal_steps(trial, torch.stack(spreads[SETTLING:]), num_steps)
    nearest = torch.searchsorted(trial, betas).clamp(max=len(trial) - 1)
    return Plan(betas.tolist(), [tunings[SETTLING + place] for place in nearest.tolist()])


def equal_steps(trial, spreads, num_steps):
    """num_steps + 1 betas between which the integral of the spreads over beta is the same."""
    spreads = spreads.cpu().double().nan_to_num(posinf=0.0)
    spreads = spreads + 1e-3 * spreads.mean() + 1e-12
    pieces = 0.5 * (spreads[1:] + spreads[:-1]) * trial.diff()
    length = torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
    wanted = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) * length[-1]
    right = torch.searchsorted(length, wanted).clamp(1, len(trial) - 1)
    share = (wanted - length[right - 1]) / pieces[right - 1]
    betas = trial[right - 1] + share.clamp(0, 1) * trial.diff()[right - 1]
    betas[0], betas[-1] = 0, 1
    return betas

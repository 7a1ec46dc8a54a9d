"""Hamiltonian Monte Carlo of many chains and units at once, and the pilot run that sets it.

Source: Neal 2011, MCMC using Hamiltonian dynamics, sections 3.2, 4.1 and 5.4.2.
"""

from dataclasses import dataclass

import torch

TARGET = 0.65  # acceptance at which a step costs least; Neal 2011, section 5.4.4
GAIN = 0.2  # of the log step size per unit of acceptance above the target
KEPT = 0.9  # of the variance from one density to the next
SETTLING = 20  # transitions at the first density before anything is noted


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


def pilot(path, betas, num_chains, num_leapfrog):
    """The Tuning at each of the betas, from chains that are thrown away.

    Scales are the chains' spread, steps follow the acceptance.  What comes out is fixed before
    any chain that counts starts, so those are exact whatever the pilot did.
    """
    state = path.draw(num_chains)
    variance = state.u.var(0)
    log_step = torch.full_like(state.log_start[0], -0.5)
    tunings = []
    for number, beta in enumerate([*betas[:1] * SETTLING, *betas]):
        tuning = Tuning(log_step.exp(), variance.clamp(min=1e-12).sqrt())
        state, acceptance = hmc(path, state, beta, tuning, num_leapfrog)
        log_step = (log_step + GAIN * (acceptance.mean(0) - TARGET)).clamp(-12, 1)
        variance = KEPT * variance + (1 - KEPT) * state.u.var(0)
        if number >= SETTLING:
            tunings.append(tuning)
    return tunings

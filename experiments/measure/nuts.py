"""NUTS, Pyro's, over all latents of a problem given all its training rows.

Several chains one after another, in float64, with what the checks of a run need: the energy at the
start of every transition, and the number of divergent ones.
Source: Hoffman & Gelman 2014, The No-U-Turn sampler.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro.infer import MCMC, NUTS

from experiments.measure.frozen import Frozen
from experiments.measure.streams import stream
from zoo.errors import require


@dataclass(frozen=True)
class Chains:
    """What NUTS drew.

    draws: {name: (chains, draws, ...)}.  energy: (chains, transitions) nats, the Hamiltonian at
    the start of every transition after warm-up, thinned away or not.  divergences: (chains,), how
    many of these transitions diverged.
    """

    draws: dict
    energy: torch.Tensor
    divergences: torch.Tensor

    @property
    def num_draws(self):
        """Number of draws in all chains."""
        return next(iter(self.draws.values())).shape[:2].numel()


def sample(
    problem,
    num_draws=10_000,
    num_chains=4,
    warmup=1000,
    thin=1,
    seed=0,
    target_accept_prob=0.95,
    jit=False,
):
    """The Chains of a problem's latents, its model's parameters as they are.

    num_draws: of all chains together, after every `thin`-th is kept.  jit: compile the potential
    with torch.jit, which makes a transition twice as fast.
    Raises ZooError for discrete latents, or numbers of draws and chains that do not fit.
    """
    discrete = ", ".join(n.name for n in problem.latents if n.support.is_discrete)
    require(
        not discrete,
        f"NUTS needs gradients, and latent {discrete} is discrete; guides with a categorical "
        "family, such as mean_field, suit it",
    )
    require(num_chains >= 2, f"R-hat needs num_chains of at least 2, got {num_chains}")
    require(thin >= 1 and warmup >= 1, f"thin and warmup must be at least 1, got {thin}, {warmup}")
    require(
        num_draws % num_chains == 0 and num_draws >= 4 * num_chains,
        f"num_draws must be a multiple of the {num_chains} chains and at least 4 a chain, "
        f"got {num_draws}",
    )
    options = {"target_accept_prob": target_accept_prob}
    options |= {"jit_compile": jit, "ignore_jit_warnings": jit}
    transitions = thin * num_draws // num_chains
    seeds = range(num_chains * seed, num_chains * (seed + 1))
    chains = [_chain(problem, transitions, warmup, chain_seed, options) for chain_seed in seeds]
    names = [latent.name for latent in problem.latents]
    return Chains(
        {name: torch.stack([draws[name][::thin] for draws, _, _ in chains]) for name in names},
        torch.stack([energy for _, energy, _ in chains]),
        torch.tensor([divergences for _, _, divergences in chains]),
    )


def _chain(problem, transitions, warmup, seed, options):
    """One chain: draws of every latent, energies, and the number of divergences."""
    x = problem.data.train
    with stream(seed, x.device), _double():
        kernel = RecordedNUTS(Frozen(problem.model).double(), **options)
        run = MCMC(kernel, transitions, warmup, disable_progbar=True)
        run.run(x.double())
        energy = torch.tensor(kernel.energies[warmup:], device=x.device)
        return run.get_samples(), energy, len(run.diagnostics()["divergences"]["chain 0"])


class RecordedNUTS(NUTS):
    """Pyro's NUTS, which also notes the Hamiltonian at the start of every transition."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.energies = []

    def _sample_r(self, name):
        r, r_unscaled = super()._sample_r(name)
        if name.startswith("r_t="):  # not while a step size is sought
            kinetic = self._kinetic_energy(r_unscaled)
            self.energies.append((kinetic + self._potential_energy_last).item())
        return r, r_unscaled


@contextmanager
def _double():
    """New tensors in float64; float32 makes the energies of long runs too coarse."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

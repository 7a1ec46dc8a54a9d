"""Structured: a chain over the steps of a time series, each state hanging on the one before.

Family: q(z_n) = q(z_n1) prod_t q(z_nt given z_n(t-1)).  Of numbers: z_t ~ Normal(loc_t + A_t
    (z_(t-1) - loc_(t-1)), L_t L_t'), a normal whose precision is block tridiagonal.  Of finite
    states: a Markov chain with tables of its own at every step.  A datum has a row of its own, or,
    with `hidden`, one that an encoder computes.  A latent that is no chain is as in `mean_field`.
Cannot represent: of numbers, skewness or several modes; of finite states it is every posterior of a
    hidden Markov model.
Needs: a latent that is a chain, which is one whose prior has a `chain_length`, as StateChain and
    GaussianChain of zoo.chains have; numbers in it without bounds.  Without `hidden`, new data need
    new rows.
Source: Saul & Jordan 1996, Exploiting tractable substructures in intractable networks; Archer,
    Park, Buesing, Cunningham & Paninski 2015, Black box variational inference for state space
    models, for the precision.
"""

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

import guides
from guides.families import choose, is_identity
from guides.guide import Guide
from guides.noted import Noted, log_standard_normal
from guides.sources import by_encoder, by_table
from guides.unsuited import require_suited
from zoo.chains import StateChain


class NormalChain(Noted, TorchDistribution):
    """States of k numbers, side by side: z_t = loc_t + A_t (z_(t-1) - loc_(t-1)) + L_t noise_t.

    loc: (..., T, k); transition: A_2 ... A_T, (..., T - 1, k, k); lower: L, (..., T, k, k).
    The event is (T k,).
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc, transition, lower):
        self.loc, self.transition, self.lower = loc, transition, lower
        self.steps, self.width = loc.shape[-2:]
        event_shape = torch.Size((self.steps * self.width,))
        super().__init__(loc.shape[:-2], event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        new = type(self)(self.loc, self.transition, self.lower)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def rsample(self, sample_shape=()):
        """States, one after the other: (*sample_shape, ..., T k)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.from_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def from_noise(self, noise):
        """The states that standard normal noise (..., T k) makes: (..., T k)."""
        each = noise.unflatten(-1, (self.steps, self.width))[..., None]
        moved = (self.lower @ each)[..., 0]
        away = [moved[..., 0, :]]
        for t in range(1, self.steps):
            before = self.transition[..., t - 1, :, :] @ away[-1][..., None]
            away.append(before[..., 0] + moved[..., t, :])
        return self.note((self.loc + torch.stack(away, -2)).flatten(-2), noise)

    def log_prob(self, value):
        """Log densities of states (..., T k), in nats: (...)."""
        noise = self.noise_of(value)
        noise = self._noise(value) if noise is None else noise
        spread = self.lower.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        found = log_standard_normal(noise) - spread
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    def _noise(self, value):
        """The noise that makes states (..., T k): the same shape."""
        away = value.unflatten(-1, (self.steps, self.width)) - self.loc
        before = (self.transition @ away[..., :-1, :, None])[..., 0]
        moved = torch.cat([away[..., :1, :], away[..., 1:, :] - before], -2)[..., None]
        lower = self.lower.expand(*moved.shape[:-2], self.width, self.width)
        return torch.linalg.solve_triangular(lower, moved, upper=False)[..., 0].flatten(-2)


class ChainOfNumbers:
    """The family of normal chains; a row is (loc, log scale, below, A).

    L_t = diag(scale_t) (I + B_t), B_t strictly lower triangular with entries `below`.
    """

    def __init__(self, latent):
        self.steps = latent.length
        (size,) = latent.event_shape
        self.width = size // self.steps
        self.parts = [size, size, self.steps * (self.width * (self.width - 1) // 2)]
        self.parts.append((self.steps - 1) * self.width**2)
        self.num_parameters = sum(self.parts)

    def initial_row(self, *batch):
        """A small random loc, unit scale, independent numbers: (*batch, num_parameters)."""
        loc = 0.1 * torch.randn(*batch, self.parts[0])
        return torch.cat([loc, loc.new_zeros(*batch, self.num_parameters - self.parts[0])], -1)

    def __call__(self, rows):
        """The distribution of each row: rows (..., num_parameters), batch (...)."""
        loc, log_scale, below, transition = rows.split(self.parts, -1)
        loc, log_scale, below = (
            part.unflatten(-1, (self.steps, -1)) for part in (loc, log_scale, below)
        )
        transition = transition.unflatten(-1, (self.steps - 1, self.width, self.width))
        places = torch.tril_indices(self.width, self.width, -1, device=rows.device)
        unit = torch.diag_embed(torch.ones_like(loc)).clone()
        unit[..., *places] = below
        return NormalChain(loc, transition, log_scale.exp()[..., None] * unit)


class ChainOfStates:
    """The family of Markov chains over finite states; a row is (first, steps), log chances."""

    def __init__(self, latent):
        self.steps, self.num_states = latent.length, latent.entry_values
        self.parts = [self.num_states, (self.steps - 1) * self.num_states**2]
        self.num_parameters = sum(self.parts)

    def initial_row(self, *batch):
        """Close to uniform, at random: (*batch, num_parameters)."""
        return 0.1 * torch.randn(*batch, self.num_parameters)

    def __call__(self, rows):
        """The distribution of each row: rows (..., num_parameters), batch (...)."""
        first, steps = rows.split(self.parts, -1)
        shape = (self.steps - 1, self.num_states, self.num_states)
        return StateChain(first, steps.unflatten(-1, shape))


def family(latent):
    """The chain that suits a latent; what `mean_field` takes where it is none."""
    if latent.length is None:
        return choose("auto", latent)
    if latent.entry_values is not None:
        return ChainOfStates(latent)
    require_suited(
        is_identity(latent.support),
        f"structured does not suit latent {latent.name!r}: a chain of numbers has none with bounds",
    )
    return ChainOfNumbers(latent)


@guides.register
def build(problem, hidden=None):
    """The guide; hidden: widths of an encoder's layers, None for a free row a training datum."""
    names = ", ".join(latent.name for latent in problem.latents)
    require_suited(
        not problem.latents or any(latent.length for latent in problem.latents),
        f"structured does not suit {problem.name}: none of its latents ({names}) is a chain",
    )
    source = by_table(problem) if hidden is None else by_encoder(problem, hidden)
    return Guide("structured", problem, source, family)

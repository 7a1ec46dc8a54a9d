"""Model-side discrete latents, summed out of a trace by Pyro's own tensor contraction.

Source: Obermeyer et al. 2019, Tensor variable elimination for plated factor graphs, algorithm 1.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree

from zoo.problem import sample_sites


@dataclass(frozen=True, eq=False)
class Factor:
    """A site's log density, packed; `ordinal` holds the symbols of its plates."""

    name: str
    ordinal: frozenset
    term: torch.Tensor
    enumerated: bool


class Factors:
    """The factors of a trace in which the `enumerated` sites hold all their values at once."""

    def __init__(self, trace, enumerated):
        trace.compute_log_prob()
        trace.pack_tensors()
        self.symbols, self.dims = trace.plate_to_symbol, trace.symbol_to_dim
        self.all = [self._factor(site, enumerated) for site in sample_sites(trace)]
        self.sum_dims = set().union(*(set(f.term._pyro_dims) - f.ordinal for f in self.all))

    def marginal(self):
        """log p of all sites with the latents summed out: [(plate names, tensor)]."""
        return self._contract(self.all)

    def marginal_likelihood(self, name):
        """An observed site given the other observed ones: (plate names, tensors to add).

        log p(all) - log p(all but this one), each with the latents summed out.  The plates are
        those that the site shares with every latent it hangs on, so that the terms in them are
        independent.  None where it hangs on none, or on one outside its plates.
        """
        own = next(factor for factor in self.all if factor.name == name)
        component = self._component(own)
        latents = [factor.ordinal for factor in component if factor.enumerated]
        unit = own.ordinal.intersection(*latents) if latents else frozenset()
        plates = self._names(unit)
        if not plates:
            return None
        others = [factor for factor in component if factor is not own]
        minus = [(plates, -tensor) for plates, tensor in self._contract(others)]
        return plates, self._contract(component) + minus

    def _factor(self, site, enumerated):
        # A masked latent still sums to one, so that its mask must not reach its density.
        latent = site["name"] in enumerated
        term = site["packed"]["unscaled_log_prob" if latent else "log_prob"]
        frames = (frame for frame in site["cond_indep_stack"] if frame.vectorized)
        ordinal = frozenset(self.symbols[frame.name] for frame in frames)
        return Factor(site["name"], ordinal, term, latent)

    def _component(self, own):
        """The factors tied to this one through values that are summed over."""
        reached, found = set(own.term._pyro_dims) & self.sum_dims, {own}
        while True:
            more = {f for f in self.all if reached & set(f.term._pyro_dims)} - found
            if not more:
                return [factor for factor in self.all if factor in found]
            found |= more
            reached |= set().union(*(set(f.term._pyro_dims) for f in more)) & self.sum_dims

    def _contract(self, factors):
        tree = OrderedDict()
        for factor in factors:
            tree.setdefault(factor.ordinal, []).append(factor.term)
        contracted = contract_tensor_tree(tree, set(self.sum_dims))
        return [
            (self._names(ordinal), packed.unpack(term, self.dims))
            for ordinal, terms in contracted.items()
            for term in terms
        ]

    def _names(self, ordinal):
        return {name for name, symbol in self.symbols.items() if symbol in ordinal}

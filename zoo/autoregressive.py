"""`Autoregressive`: p(x) = prod_i p(x_i given x_1 ... x_(i-1)), each factor by one network."""

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints
from torch.nn.functional import softplus

from zoo.distributions import picked, whole_numbers

ENTRIES_AT_ONCE = 100_000  # of rows, in a pass that keeps no gradient: bounds the memory


class Autoregressive(TorchDistribution):
    """Vectors of whole numbers below `num_values` whose every entry depends on those before it.

    conditionals(x) maps vectors (m, d) to the logits of every entry given the ones before it:
    (m, d), those of a 1, for two values, else (m, d, num_values).  like: a parameter, whose device
    and type draws have.

    A log density is one pass of the network, a draw one for every entry.  Where conditionals has a
    method `at(x, place)`, draws take the logits of that place alone from it, (m, ...).
    """

    arg_constraints = {}

    def __init__(self, conditionals, length, like, num_values=2):
        self.conditionals, self.length, self.num_values = conditionals, length, num_values
        self.like = like
        super().__init__(torch.Size(), torch.Size((length,)), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        if self.num_values == 2:
            return constraints.independent(constraints.boolean, 1)
        return whole_numbers(self.num_values)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch, for which the network runs once."""
        new = type(self)(self.conditionals, self.length, self.like, self.num_values)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value):
        """Log probabilities of vectors (..., d), in nats: (...)."""
        rows = value.reshape(-1, self.length).to(self.like)
        found = by_blocks(lambda block: self.log_conditionals(block).sum(-1), rows)
        found = found.reshape(value.shape[:-1])
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    def log_conditionals(self, rows):
        """log p of every entry given those before it: rows (m, d) -> (m, d)."""
        logits = self.conditionals(rows)
        if self.num_values == 2:
            return rows * logits - softplus(logits)
        return picked(logits.log_softmax(-1), rows)

    @torch.no_grad()
    def sample(self, sample_shape=()):
        """Draws entry by entry: (*sample_shape, ..., d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = self.like.new_zeros(shape[:-1].numel(), self.length)
        for place in range(self.length):
            rows[:, place] = by_blocks(lambda block, place=place: self._draw(block, place), rows)
        return rows.reshape(shape)

    def _draw(self, rows, place):
        at = getattr(self.conditionals, "at", None)
        logits = self.conditionals(rows)[:, place] if at is None else at(rows, place)
        if self.num_values == 2:
            return torch.bernoulli(logits.sigmoid())
        return torch.distributions.Categorical(logits=logits).sample().to(logits)


def by_blocks(function, rows):
    """function(rows), by blocks of rows where it keeps no gradient, so that memory is bounded.

    function maps rows (m, d) to a tensor (m, ...), each row for itself.
    """
    at_once = max(1, ENTRIES_AT_ONCE // rows.shape[-1])
    if torch.is_grad_enabled() or len(rows) <= at_once:
        return function(rows)
    return torch.cat([function(block) for block in rows.split(at_once)])

"""Sums over every binary vector of a latent: the exact evidence and posterior, in log space.

2^length terms a row are within reach up to a length of LONGEST.  They are taken in blocks of rows
and of vectors, so that the memory is bounded.
"""

import math

import torch
from torch.distributions import constraints

from zoo.distributions import FiniteVector, all_vectors

LONGEST = 16
SETTLED = 12  # bits of a vector that are taken at once
VECTORS_AT_ONCE = 2**SETTLED  # of which a decoder computes the logits
CELLS_AT_ONCE = 2**23  # of rows x vectors


def log_evidence(log_joint, x, length):
    """log p(x) of every row: (n,) nats.

    log_joint(x, z): log p(x, z) of rows (m, d) with each of the vectors (g, length): (m, g).
    """
    parts = []
    for rows in x.split(CELLS_AT_ONCE // VECTORS_AT_ONCE):
        total = rows.new_full((len(rows),), -math.inf)
        for z in blocks(length, x):
            total = total.logaddexp(log_joint(rows, z).logsumexp(-1))
        parts.append(total)
    return torch.cat(parts)


def blocks(length, like):
    """Every binary vector in the order of `all_vectors`: blocks (at most VECTORS_AT_ONCE, length).

    They are made one at a time: all together they need memory that grows as they do.
    """
    low = all_vectors(min(length, SETTLED), like=like)
    if length <= SETTLED:
        yield low
        return
    for high in all_vectors(length - SETTLED, like=like):
        yield torch.cat([high.expand(len(low), -1), low], 1)


class VectorPosterior(FiniteVector):
    """p(z given x) over binary vectors: batch (n,), or (..., n) expanded, event (length,).

    log_joint(x, z): as `log_evidence` takes it.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, log_joint, x, length):
        self.log_joint, self.x, self.length = log_joint, x, length
        self.vectors = all_vectors(length, like=x)
        super().__init__(x.shape[:1], (length,), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch (..., n), for which the sums stand once."""
        new = type(self)(self.log_joint, self.x, self.length)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @property
    def mean(self):
        """Probabilities of ones, (..., n, length)."""
        found = torch.cat([share.exp() @ self.vectors for share in self._log_shares()])
        return found.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self):
        """(..., n, length)."""
        return self.mean * (1 - self.mean)

    def sample(self, sample_shape=()):
        """Draws of 0 and 1: (*sample_shape, ..., n, length)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        count = shape[:-2].numel()
        with torch.no_grad():
            places = [
                share.exp().multinomial(count, replacement=True) for share in self._log_shares()
            ]
        return self.vectors[torch.cat(places).T].reshape(shape)

    def log_prob(self, value):
        """Log probabilities of vectors (..., n, length), in nats: (..., n)."""
        powers = 2 ** torch.arange(value.shape[-1] - 1, -1, -1, device=value.device)
        places = (value.long() * powers).sum(-1)
        flat = places.expand(*places.shape[:-1], len(self.x)).reshape(-1, len(self.x)).T
        size = self._rows_at_once()
        pairs = zip(self._log_shares(), flat.split(size), strict=True)
        found = torch.cat([share.gather(1, index) for share, index in pairs])
        found = found.T.reshape(*places.shape[:-1], len(self.x))
        return found.expand(torch.broadcast_shapes(self.batch_shape, found.shape))

    def _log_shares(self):
        """log p(z given x) of every vector, a block of rows at a time: (m, 2^length)."""
        for rows in self.x.split(self._rows_at_once()):
            blocks = [self.log_joint(rows, z) for z in self.vectors.split(VECTORS_AT_ONCE)]
            yield torch.cat(blocks, -1).log_softmax(-1)

    def _like(self):
        return self.x

    def _rows_at_once(self):
        return max(1, CELLS_AT_ONCE // len(self.vectors))

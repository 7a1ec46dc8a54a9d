"""The best independent entries of discrete latents for every datum, one entry after another.

Where q(z) = prod_i q(z_i) and all factors but one stay, the best of that one is

    log q(z_i = v) = E log p(x, z_i = v, the others) + constant,

the mean over draws of the others.  Sweeps over the entries take it for one factor after another;
later sweeps average it, so that the noise of the draws dies away.

The convergence rule: that noise costs every datum at most 0.005 nats; 40 averaged sweeps at most.
Source: Bishop 2006, eq. 10.9; Saul, Jaakkola & Jordan 1996, Mean field theory for sigmoid belief
    networks; the mean by draws: Titsias & Lazaro-Gredilla 2015, Local expectation gradients.
"""

import math

import torch

from experiments.measure.path import Densities, Entries
from experiments.measure.streams import stream
from guides.families import Categorical, DiscreteVector

NUM_DRAWS = 32
SETTLING = 4  # sweeps before those that are averaged
LEAST, MOST = 4, 40  # sweeps that are averaged
TOLERANCE = 0.005  # nats
LARGEST = 30.0  # difference of two values' log p beyond which certain is certain
JUDGE_DRAWS = 256  # by which candidates are compared
JUDGE_SEED = 1  # apart from the noise of the search
FLOATS_AT_ONCE = 2**21  # of draws x rows x columns


def suits(guide):
    """Whether q of a guide's latents is one of independent entries with a few values each."""
    return all(
        latent.local
        and latent.entry_values is not None
        and isinstance(guide.families[latent.name], Categorical | DiscreteVector)
        for latent in guide.latents
    )


class Coordinates:
    """Searches for the best of a family; `passes`, sweeps, and `converged` are over all of them."""

    def __init__(self, problem, guide):
        self.problem, self.guide = problem, guide
        self.passes, self.converged = 0, True

    def __call__(self, x, first, restarts, keep_first):
        """The best rows {latent: (n, num_parameters)}, and whether a restart found them: (n,).

        first: the rows where the first search starts.  keep_first: keep those of them that are
        better than what the searches found.
        """
        way, begin = Entries(Densities(self.problem, x)), self.tables(first)
        starts, best = [begin], torch.zeros(len(x), dtype=torch.long, device=x.device)
        if restarts:
            starts += [[scattered(own) for own in begin] for _ in range(restarts)]
            starts = [Sweeps(way, start).run(LEAST) for start in starts]
            best = best_of(way, starts)
        sweeps = Sweeps(way, _chosen(starts, best))
        tables = sweeps.run()
        self.passes = max(self.passes, sweeps.taken)
        self.converged &= sweeps.converged
        if keep_first:
            better = best_of(way, [tables, begin])
            tables, best = _chosen([tables, begin], better), best * (1 - better)
        return self.rows(tables), best > 0

    def blocks(self, x):
        """Places of rows that are searched together, so that memory is bounded."""
        entries = sum(map(_length, self.guide.latents))
        at_once = max(1, FLOATS_AT_ONCE // (NUM_DRAWS * max(x.shape[-1], entries)))
        return torch.arange(len(x), device=x.device).split(at_once)

    def tables(self, rows):
        """log q of the values of every entry, [(K, n), ...], of {latent: (n, num_parameters)}."""
        found = []
        for latent in self.guide.latents:
            own = rows[latent.name]
            if self._has_logits_of_1(latent):
                own = torch.stack([torch.zeros_like(own), own], -1)
            own = own.reshape(len(own), _length(latent), latent.entry_values)
            found += own.log_softmax(-1).permute(1, 2, 0)
        return found

    def rows(self, tables):
        """The inverse of `tables`."""
        found, tables = {}, iter(tables)
        for latent in self.guide.latents:
            own = torch.stack([next(tables).T for _ in range(_length(latent))], 1)
            if self._has_logits_of_1(latent):
                own = own[..., 1] - own[..., 0]
            found[latent.name] = own.flatten(1)
        return found

    def _has_logits_of_1(self, latent):
        family = self.guide.families[latent.name]
        return isinstance(family, DiscreteVector) and family.num_values == 2


class Sweeps:
    """Sweeps over the entries of every row, by draws of their own, from tables [(K, n), ...]."""

    def __init__(self, way, tables):
        self.way, self.tables = way, list(tables)
        self.means, self.squares = ([torch.zeros_like(t) for t in tables] for _ in range(2))
        self.taken, self.averaged, self.converged = 0, 0, False

    def run(self, most=MOST):
        """The tables found, after averaging `most` sweeps or fewer."""
        draws = [drawn_from(own, NUM_DRAWS) for own in self.tables]
        state = self.way.evaluate(torch.stack(draws, -1).to(self.way.densities.x))
        while self.averaged < most and not self.converged:
            self.averaged += self.taken >= SETTLING
            for place in range(len(self.tables)):
                state = self._improve(state, place)
            self.taken += 1
            self.converged = self.averaged >= LEAST and bool((self.cost() <= TOLERANCE).all())
        return self.tables

    def cost(self):
        """What the noise left in the tables costs every row, to second order: (n,) nats."""
        degrees = self.averaged * (self.averaged - 1)
        pairs = zip(self.tables, self.squares, strict=True)
        return sum((own.exp() * (1 - own.exp()) * s).sum(0) for own, s in pairs) / (2 * degrees)

    def _improve(self, state, place):
        """Take the best factor for an entry, and draw the entry from it."""
        options = list(self.way.turned(state, place))
        found = expected(options, place)
        if self.averaged:
            found = self._average(found, place)
        self.tables[place] = found.log_softmax(0)
        turns = drawn_from(self.tables[place], NUM_DRAWS) - state.u[..., place].long()
        for number, option in enumerate(options[1:], 1):
            state = state.replaced(option, turns % len(found) == number)
        return state

    def _average(self, found, place):
        """The mean over sweeps so far; `squares` are the squared deviations from it."""
        before = found - self.means[place]
        self.means[place] = self.means[place] + before / self.averaged
        self.squares[place] = self.squares[place] + before * (found - self.means[place])
        return self.means[place]


def expected(options, place):
    """E log p(x, z) for every value of an entry, less that for its first: (K, n)."""
    table, present = torch.stack([o.log_joint for o in options]), options[0].u[..., place].long()
    values = torch.arange(len(options), device=table.device)[:, None, None]
    table = table.gather(0, (values - present) % len(options))
    return (table - table[:1]).nan_to_num().mean(1).clamp(-LARGEST, LARGEST)


def best_of(way, candidates):
    """Which of several lists of tables has the highest bound, for every row: (n,).

    It is the first unless another is better by two standard errors of draws from the same noise.
    """
    gains = torch.stack([log_weights(way, tables) for tables in candidates])
    gains = gains - gains[0]
    doubt = gains.std(1).nan_to_num() / math.sqrt(JUDGE_DRAWS)  # no number beside an infinite gain
    sure = (gains.mean(1) - 2 * doubt).nan_to_num(nan=-math.inf)
    sure[0] = 0
    return sure.argmax(0)


def log_weights(way, tables):
    """log p(x, z) - log q(z) at draws of tables, by the same noise for any: (draws, n)."""
    with stream(JUDGE_SEED, tables[0].device):
        draws = [drawn_from(own, JUDGE_DRAWS) for own in tables]
    log_q = sum(own.gather(0, z) for own, z in zip(tables, draws, strict=True))
    points = torch.stack(draws, -1).to(way.densities.x).split(NUM_DRAWS)
    return torch.cat([way.evaluate(u).log_joint for u in points]) - log_q


def drawn_from(table, num_draws):
    """Draws of values from log probabilities (K, n): (num_draws, n)."""
    below = table.exp().cumsum(0)[:-1]
    return (torch.rand(num_draws, 1, *table.shape[1:]).to(table) > below).sum(1)


def scattered(table):
    """Log probabilities drawn at random, of the shape of a table (K, n)."""
    return torch.randn_like(table).log_softmax(0)


def _length(latent):
    return latent.event_shape[0] if latent.event_shape else 1


def _chosen(options, best):
    """For every row the tables of the best (n,) of the options."""
    rows = torch.arange(len(best), device=best.device)
    return [torch.stack(own)[best, :, rows].T for own in zip(*options, strict=True)]

"""The bound of every datum as a smooth function of its row: draws by noise that stays the same.

A draw of a normal is its location and scale applied to standard noise.  Held fixed, the same for
every datum, the noise makes the bound an exact function to climb, without noise of its own.  It
is even: antithetic, scrambled Sobol points whose mean and covariance are exactly 0 and 1, so that
the bound is exact where log p is quadratic in the latents.  Values of finite latents are summed
over, and their best distributions follow from the sums.
Source: Kingma & Welling 2014, section 2.4; Sobol points with antithetic noise: Buchholz, Wenzel &
    Mandt 2018, Quasi-Monte Carlo variational inference; Bishop 2006, eq. 10.9, for finite latents.
"""

import math

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import nn

from experiments.measure.elbo import run_pair
from experiments.measure.frozen import Frozen
from guides.families import Categorical, unconstrained
from guides.placed import even_noise, placed
from zoo.errors import require

SWEEPS = 30  # over several finite latents, whose best distributions hang on each other


class Fixed(Messenger):
    """Answers the sites of a guide in a plate of draws: normals by noise, finite ones by value.

    noise: (num_points, size), whose columns the sites take in turn.  values: {finite latent:
    places (c,) among its values}, of every combination; the draws are all points for the first
    combination, then for the next.  log_q: what the finite sites have added to log q.
    """

    def __init__(self, noise, values):
        super().__init__()
        self.noise, self.values = noise, values

    def __enter__(self):
        self.taken, self.log_q = 0, 0.0
        return super().__enter__()

    def _pyro_sample(self, message):
        fn, name = message["fn"], message["name"]
        if message["value"] is not None or site_is_subsample(message):
            return  # observed, or replayed from the guide
        if name in self.values:
            places = self.values[name].repeat_interleave(len(self.noise))
            value = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
            message["value"] = value[places, None]  # one for all rows: they share what follows
            self.log_q = self.log_q + fn.log_prob(message["value"])
        else:
            message["value"] = placed(fn, self._take)
        message["done"] = True

    def _take(self, shape):
        """The next columns of the noise, for every combination: (draws, 1, *shape)."""
        width = math.prod(shape)
        columns = self.noise[:, self.taken : self.taken + width]
        self.taken += width
        count = len(next(iter(self.values.values()), [0]))
        return columns.repeat(count, 1).reshape(-1, 1, *shape)


class Given(nn.Module):
    """The source of rows that are handed over before each run."""

    given = ()  # in a tuple they are no parameters of the guide's

    def forward(self, rows, index):
        return self.given[0]


class FixedBound:
    """The bound of every datum under given rows of a guide's family, the model as it is.

    widths: {latent: how many numbers its rows have} of the local latents whose rows are searched
    for: those that noise draws, and finite ones of which the family has not every distribution;
    what is best for the other finite ones, `free`, follows.  The points of the noise are `folds`
    times `least`, or times the power of two from twice the noise's numbers on where that is more.
    """

    def __init__(self, problem, guide, least=2, folds=1, seed=0):
        self.model, self.guide = Frozen(problem.model), guide.with_table(problem, 1)
        local = [latent.name for latent in guide.latents if latent.local]
        for name in local:
            self.guide.sources[name] = Given()
        smooth = [latent for latent in guide.latents if not latent.support.is_discrete]
        size = sum(math.prod(unconstrained(latent)[1]) for latent in smooth)
        points = folds * max(least, 2 ** math.ceil(math.log2(2 * size))) if size else 1
        device = problem.data.train.device
        self.noise = even_noise(points, size, seed).to(device, torch.get_default_dtype())
        names = {latent.name for latent in smooth}
        finite = [latent for latent in guide.latents if latent.name not in names]
        for latent in finite:
            require(
                latent.num_values is not None,
                f"the search for the best of a family sums over latent {latent.name!r}, which has "
                "too many values",
            )
        self.counts = {latent.name: latent.num_values for latent in finite}
        self.all_values = {latent.name: latent.values.to(device)[:, None] for latent in finite}
        self.free = {n for n in self.counts if isinstance(guide.families[n], Categorical)}
        self.widths = {n: guide.families[n].num_parameters for n in local if n not in self.free}
        places = [torch.arange(count, device=device) for count in self.counts.values()]
        grids = torch.meshgrid(*places, indexing="ij") if places else []
        self.values = {n: g.flatten() for n, g in zip(self.counts, grids, strict=True)}

    @property
    def num_draws(self):
        """How often a datum's densities are evaluated."""
        return len(self.noise) * math.prod(self.counts.values())

    def table(self, rows, x):
        """E log p(x, z) - log q of the smooth latents, for the values of finite ones: (..., n).

        rows: {latent: (n, num_parameters)}; the finite latents' do not matter.  x: (n, d).
        """
        for name, own in rows.items():
            self.guide.sources[name].given = (own,)
        fixed = Fixed(self.noise, self.values)
        with fixed:  # outside the plate of draws, so that it sees batches with it
            terms = run_pair(self.model, self.guide, x, self.num_draws).log_weight + fixed.log_q
        return terms.unflatten(0, (*self.counts.values(), len(self.noise))).mean(-2)

    def value(self, rows, x):
        """The bound of every datum: (n,)."""
        logs = [self._log_q(name, rows) for name in self.counts]
        return expected(self.table(rows, x), logs)

    def best_finite(self, rows, x):
        """The rows with the best of the family for free latents, given the others' rows."""
        logs = self._best_logs(self.table(rows, x), rows)
        pairs = zip(self.counts, logs, strict=True)
        return rows | {name: own.T for name, own in pairs if name in self.free}

    def best(self, flat, x):
        """The bound with the free latents at their best: (n,).

        flat: (n, numbers), the rows of the others side by side.
        """
        rows = self.unflatten(flat)
        table = self.table(rows, x)
        return expected(table, self._best_logs(table, rows))

    def gradient(self, flat, x):
        """The same and its gradient: (n,) and (n, numbers)."""
        if not self.widths:
            return self.best(flat, x), flat
        flat = flat.detach().requires_grad_()
        with torch.enable_grad():
            bound = self.best(flat, x)
            (gradient,) = torch.autograd.grad(bound.sum(), flat)
        return bound.detach(), gradient

    def flatten(self, rows):
        """The rows of all but the free latents side by side: (n, numbers)."""
        width = next(iter(rows.values()))
        return torch.cat([width[:, :0], *(rows[name] for name in self.widths)], -1)

    def unflatten(self, flat):
        """{latent: its rows} of rows side by side, with rows of no meaning for free latents."""
        parts = flat.split(list(self.widths.values()), -1)
        free = {name: flat.new_zeros(len(flat), self.counts[name]) for name in self.free}
        return dict(zip(self.widths, parts, strict=True)) | free

    def _log_q(self, name, rows):
        """log q of every value of a finite latent under its rows: (values, n)."""
        return self.guide.distribution(name, rows[name]).log_prob(self.all_values[name])

    def _best_logs(self, table, rows):
        """log q of every finite latent's values: the best of the free ones, the others' as it is"""
        given = [None if n in self.free else self._log_q(n, rows) for n in self.counts]
        return best_logs(table.detach(), given)


def expected(table, logs):
    """The bound of a table (K1, ..., Km, n) under log probabilities [(K1, n), ...]: (n,)."""
    for own in logs:
        table = table - _lifted(own, table)
        weights = _lifted(own.exp(), table)
        table = torch.where(weights > 0, weights * table, 0.0).sum(0)
    return table


def best_logs(table, given=None):
    """The log probabilities [(K1, n), ...] of independent finite latents that make it largest.

    given: those that stay as they are, None for the others (all by default).  Exact for one
    latent; several are improved in turn, beginning with uniform ones.
    """
    *counts, n = table.shape
    pairs = list(zip(counts, given or [None] * len(counts), strict=True))
    free = [i for i, (_, own) in enumerate(pairs) if own is None]
    logs = [table.new_full((k, n), -math.log(k)) if own is None else own for k, own in pairs]
    for _ in range(SWEEPS if len(counts) > 1 else 1):
        for i in free:
            mean = table.movedim(i, -2)
            for other in logs[:i] + logs[i + 1 :]:
                mean = (_lifted(other.detach().exp(), mean) * mean).sum(0)
            logs[i] = mean.log_softmax(0)
    return logs


def _lifted(own, table):
    """(K, n) as (K, 1, ..., 1, n), with as many dimensions as the table."""
    return own.reshape(len(own), *[1] * (table.dim() - 2), -1)

"""The best member of a guide's family for every datum, with the model frozen.

The convergence rule: quasi-Newton steps on the bound by fixed, even noise (see fixed.py), first on
at least 16 points of it from every start, then, from the best of what these found, on four times as
many, until a datum's next step foretells a gain of at most 0.0001 nats; 300 steps at most each.
A restart begins at the best of 128 scattered rows.  Candidates are compared on points of their own.
A finite latent that is alone has its best distribution exactly.  Where there are too many values to
sum over, independent entries are searched one after another (see coordinates.py).

The rows of a joint problem share latents, so they are searched together, by SVI: Adam at a rate of
0.1 on all rows at every step; whenever a window of 50 steps passes the test of
`experiments.svi.stopping.flat` the rate falls to a tenth, and the third such window ends the fit.
So are, in blocks, the rows of latents that neither of the other searches suits.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from experiments.measure import coordinates
from experiments.measure.ascent import climb
from experiments.measure.coordinates import Coordinates
from experiments.measure.elbo import log_weights
from experiments.measure.fixed import FixedBound
from experiments.measure.frozen import Frozen
from experiments.measure.streams import stream
from experiments.svi.config import FitConfig
from experiments.svi.estimators import can_enumerate, resolve
from experiments.svi.loop import train
from experiments.svi.run import Run, reset
from guides.guide import Guide
from guides.placed import placeable
from zoo.errors import require

PASSES = 300  # evaluations of a datum's bound in a search, at most
ROUGH, TOLERANCE = 1e-3, 1e-4  # nats that a step must foretell for a search to go on
SCATTERED = 128  # rows of which a restart takes the best
POINTS = 16  # of the noise of the rough search, at least
FOLDS = 4  # times as many for the fine one, and to judge by
FLOATS_AT_ONCE = 2**21  # of draws x rows x columns
RULE = FitConfig(
    steps=2000,
    batch_size=None,
    learning_rate=0.1,
    decay=1.0,
    flat_window=50,
    flat_drops=2,
)
ROWS_AT_ONCE = 4096
SVI_PARTICLES = 16
JUDGE_DRAWS = 100  # draws, the same for each, by which searches for one datum are compared
JUDGE_SEED = 1  # apart from the noise of the search and of reports, so that choosing is no cheating
MARGIN = 0.02  # nats by which a restart must be better; less is noise


@dataclass(frozen=True)
class RowFit:
    """A guide with a fitted row for each datum, and what that took.

    steps: the largest number over searches and blocks of rows; converged: whether every search met
    the rule; restarts: how many searches there were besides the first; restarted: the share of the
    data whose best row came from one of those.
    """

    guide: nn.Module
    steps: int
    converged: bool
    restarts: int = 0
    restarted: float = 0.0


def fit_rows(problem, guide, x, start=None, restarts=0):
    """Fit a free row of the guide's family to every row of x (n, d), the model as it is.

    start: {latent: (n, num_parameters)}, the family's own start where None; a datum whose start is
    better than what the search found keeps it.  restarts: further searches from scattered starts,
    of which each datum keeps the best.
    """
    x = problem.check_support(x)
    require(
        type(restarts) is int and restarts >= 0,
        f"restarts must be a whole number from 0, got {restarts!r}",
    )
    if not any(latent.local for latent in problem.latents):
        return RowFit(guide, 0, True)
    require(
        hasattr(guide, "families") and hasattr(guide, "with_table"),
        f"guide {getattr(guide, 'name', 'given')!r} has no row of parameters a datum to fit: take "
        "a family times a source, such as mean_field or amortized",
    )
    kind = _search(guide)
    if kind is None:
        return _fit_by_svi(problem, guide, x, start)
    with stream(0, x.device), torch.no_grad():
        search = kind(problem, guide)
        first = start or _initial(guide, len(x), x.device)
        parts = [
            search(x[block], _at(first, block), restarts, start is not None)
            for block in search.blocks(x)
        ]
    rows = {name: torch.cat([found[name] for found, _ in parts]) for name in first}
    restarted = torch.cat([from_restart for _, from_restart in parts]).float().mean().item()
    fitted = guide.with_table(problem, len(x), rows).to(x.device)
    return RowFit(fitted, search.passes, search.converged, restarts, restarted)


def _search(guide):
    """The search that suits a guide's latents; None where SVI alone does."""
    discrete = [latent for latent in guide.latents if latent.support.is_discrete]
    if can_enumerate(discrete):
        return Search if all(map(placeable, _smooth(guide))) else None
    return Coordinates if coordinates.suits(guide) else None


@torch.no_grad()
def _smooth(guide):
    """A distribution of every continuous latent of the guide."""
    families = [guide.families[la.name] for la in guide.latents if not la.support.is_discrete]
    device = next((p.device for p in guide.parameters()), None)
    return [family(family.initial_row(1).to(device)) for family in families]


def _fit_by_svi(problem, guide, x, start):
    """Rows by stochastic gradients: a RowFit of one search for each block of rows."""
    at_once = max(1, FLOATS_AT_ONCE // (SVI_PARTICLES * x.shape[-1]))
    blocks = torch.arange(len(x), device=x.device).split(at_once)
    first = start or _initial(guide, len(x), x.device)
    runs = [_svi_block(problem, guide, x[block], _at(first, block)) for block in blocks]
    parts = [run.modules["guide"].eval().rows(run.data) for run in runs]
    with torch.no_grad():
        rows = {name: torch.cat([found[name] for found in parts]) for name in first}
        if start is not None:
            rows = _better(problem, guide, x, rows, start)
    steps, converged = max(run.step for run in runs), all(r.flats > RULE.flat_drops for r in runs)
    return RowFit(guide.with_table(problem, len(x), rows).to(x.device), steps, converged)


def _svi_block(problem, guide, x, first):
    config = resolve(RULE, problem)
    if config.estimator != "enumeration":
        config = config.model_copy(update={"num_particles": SVI_PARTICLES})
    with stream(0, x.device):
        candidate = guide.with_table(problem, len(x), first).to(x.device).train()
        run = Run(Frozen(problem.model), candidate, x, config, 0)
        train(run, problem)
    return run


def _better(problem, guide, x, rows, others):
    """For every datum the better of two rows of a guide's family, by the same noise."""
    options = [rows, others]
    tables = [guide.with_table(problem, len(x), own).to(x.device) for own in options]
    bounds = [log_weights(problem, own, x, JUDGE_DRAWS, JUDGE_SEED).mean(0) for own in tables]
    best = _known(torch.stack(bounds)).argmax(0)
    return {name: _chosen([own[name] for own in options], best) for name in rows}


class Search:
    """Searches for the best of a family; `passes` and `converged` are over all of them."""

    def __init__(self, problem, guide):
        self.guide, self.glance = guide, FixedBound(problem, guide, 8)
        self.coarse = FixedBound(problem, guide, POINTS)
        self.fine = FixedBound(problem, guide, POINTS, FOLDS)
        self.judge = FixedBound(problem, guide, POINTS, FOLDS, JUDGE_SEED)
        self.passes, self.converged = 0, True

    def __call__(self, x, first, restarts, keep_first):
        """The best rows {latent: (n, num_parameters)}, and whether a restart found them: (n,).

        first: the rows where the first search starts.  keep_first: keep those of them that are
        better than what the searches found.
        """
        restarts = restarts if self.coarse.widths else 0  # finite latents have no need of a search
        starts = [first] + [self._scattered(x) for _ in range(restarts)]
        tops = [self._climb(self.coarse, self.coarse.flatten(rows), x, ROUGH) for rows in starts]
        bounds = torch.stack([self.judge.best(top.points, x) for top in tops])
        bounds[1:] -= MARGIN
        best = _known(bounds).argmax(0)
        points = _chosen([top.points for top in tops], best)
        inverse = _chosen([top.inverse for top in tops], best)
        top = self._climb(self.fine, points, x, TOLERANCE, inverse)
        self.converged &= bool(top.converged.all())
        rows = self.fine.best_finite(self.fine.unflatten(top.points), x)
        if keep_first:
            better = self.judge.value(first, x) > self.judge.value(rows, x)
            rows = {n: _chosen([own, first[n]], better.long()) for n, own in rows.items()}
            best = best * ~better
        return rows, best > 0

    def blocks(self, x):
        """Places of rows that are searched together, so that memory is bounded."""
        at_once = max(1, FLOATS_AT_ONCE // (self.fine.num_draws * x.shape[-1]))
        return torch.arange(len(x), device=x.device).split(at_once)

    def _scattered(self, x):
        """Starts for every datum: of SCATTERED rows with unit noise on each number the best."""
        begin = _initial(self.guide, len(x), x.device)
        each = {name: rows.repeat(SCATTERED, 1) for name, rows in begin.items()}
        each = {name: rows + torch.randn_like(rows) for name, rows in each.items()}
        bounds = self.glance.value(each, x.repeat(SCATTERED, 1)).reshape(SCATTERED, -1)
        best = _known(bounds).argmax(0) * len(x) + torch.arange(len(x), device=x.device)
        return _at(each, best)

    def _climb(self, bound, start, x, tolerance, inverse=None):
        top = climb(lambda p, i: bound.gradient(p, x[i]), start, PASSES, tolerance, inverse)
        self.passes = max(self.passes, top.passes)
        return top


def _at(rows, index):
    return {name: own[index] for name, own in rows.items()}


def _known(bounds):
    """Bounds of which none that is not a number can be the largest."""
    return bounds.where(~bounds.isnan(), -torch.inf)


def _chosen(options, best):
    """For every datum the row of the best (n,) of the options, each (n, ...)."""
    return torch.stack(options)[best, torch.arange(len(best), device=best.device)]


def fit_joint(problem, guide, x, restarts=0, rule=RULE):
    """The best member of the family for a joint problem: every row and every shared parameter.

    The first search starts at the guide's own answer for x (n, d), each restart at scattered rows;
    the best is kept, which may be the guide's own answer itself.
    """
    x = problem.check_support(x)
    config = joint_config(rule, problem, x)
    frozen = Frozen(problem.model)
    runs = []
    for seed in range(restarts + 1):
        with stream(seed, x.device):
            candidate = _free(problem, guide, x)
            if seed > 0:
                _scatter(candidate)
            runs.append(Run(frozen, candidate, x, config, seed))
            train(runs[-1], problem)
    guides = [guide, *(run.modules["guide"].eval() for run in runs)]
    bounds = [log_weights(problem, one, x, JUDGE_DRAWS, JUDGE_SEED).mean().item() for one in guides]
    best = bounds.index(max(bounds))
    converged = all(run.flats > rule.flat_drops for run in runs)
    steps = max(run.step for run in runs)
    return RowFit(guides[best], steps, converged, restarts, float(best > 1))


def joint_config(rule, problem, x):
    """The rule with the draws a step that all rows of a joint problem together can pay for."""
    config = resolve(rule, problem)
    if config.estimator == "enumeration":
        return config
    return config.model_copy(update={"num_particles": min(64, max(8, ROWS_AT_ONCE // len(x)))})


def _scatter(guide):
    """Begin anew, with unit noise on every parameter."""
    reset(guide)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter))


def _free(problem, guide, x):
    """A copy of the guide with a free row a datum, begun at its own answer, all of it trainable."""
    if not isinstance(guide, Guide) or guide.joined:  # every parameter of these is free as it is
        return deepcopy(guide).requires_grad_(True).train()
    with torch.no_grad():
        start = guide.rows(x)
    free = guide.with_table(problem, len(x), start).to(x.device)
    return free.requires_grad_(True).train()


def restricted(problem, guide, x, index):
    """The guide for the rows x[index] alone, where it has an answer for every row of x."""
    if not getattr(guide, "tabular", False):
        return guide
    with torch.no_grad():
        start = {name: rows[index] for name, rows in guide.rows(x).items()}
    return guide.with_table(problem, len(index), start).to(x.device)


def _initial(guide, num_data, device):
    """The family's own start for every datum."""
    families = {la.name: guide.families[la.name] for la in guide.latents if la.local}
    return {name: family.initial_row(num_data).to(device) for name, family in families.items()}

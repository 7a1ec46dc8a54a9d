"""The best member of a guide's family for every datum, with the model frozen.

The convergence rule: Adam on all rows of a block at once, at a rate of 0.1, with eight draws a
datum and step (fewer, down to one, for more than 512 rows), or exact sums for discrete latents at
a rate of 0.5; whenever a window of 50 steps passes the test of `experiments.svi.stopping.flat` the
rate falls to a tenth, and the third such window ends the fit.  Adam's noise leaves up to about
0.001 nats a latent dimension; a datum whose row was better where the search began keeps it.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import nn

from experiments.measure.elbo import draw, log_weights
from experiments.measure.streams import stream
from experiments.svi.config import FitConfig
from experiments.svi.estimators import resolve
from experiments.svi.loop import train
from experiments.svi.run import Run, reset
from guides.guide import Guide
from zoo.errors import require

RULE = FitConfig(
    steps=2000,
    batch_size=None,
    learning_rate=0.1,
    decay=1.0,
    flat_window=50,
    flat_drops=2,
)
ROWS_AT_ONCE = 4096
JUDGE_DRAWS = 100  # draws, the same for each, by which searches for one datum are compared
JUDGE_SEED = 1  # apart from the stream that reports the bound, so that choosing is no cheating
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


def fit_rows(problem, guide, x, start=None, restarts=0, rule=RULE):
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
    found = _search(problem, guide, x, start, rule, seed=0)
    if start is not None:
        begun = replace(found, guide=guide.with_table(problem, len(x), start).to(x.device))
        found, _ = _better_rows(problem, found, begun, x, margin=0.0)
    better = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for seed in range(1, restarts + 1):
        with stream(seed, x.device):
            scattered = _scattered(guide, len(x), x.device)
        other = _search(problem, guide, x, scattered, rule, seed)
        found, improved = _better_rows(problem, found, other, x, MARGIN)
        better |= improved
    return replace(found, restarts=restarts, restarted=better.float().mean().item())


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


def _search(problem, guide, x, start, rule, seed):
    """One fit of a row to every datum."""
    config = resolve(rule, problem)
    particles = min(8, max(1, ROWS_AT_ONCE // len(x)))
    exact = config.estimator == "enumeration"
    suited = {"learning_rate": 0.5} if exact else {"num_particles": particles}
    config = config.model_copy(update=suited)
    frozen = Frozen(problem.model)
    blocks = torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE)
    with stream(seed, x.device):
        whole = guide.with_table(problem, len(x), start).to(x.device)
        runs = [_fit_block(problem, frozen, whole, x, block, config) for block in blocks]
    return RowFit(
        whole, max(run.step for run in runs), all(run.flats > rule.flat_drops for run in runs)
    )


def _fit_block(problem, frozen, whole, x, block, config):
    """Fit the rows of one block, and put them into the whole table."""
    part = restricted(problem, whole, x, block)
    run = Run(frozen, part, x[block], config, seed=0)
    train(run, problem)
    for name, rows in part.rows(x[block]).items():
        whole.sources[name].rows.weight.data[block] = rows.detach()
    return run


def restricted(problem, guide, x, index):
    """The guide for the rows x[index] alone, where it has an answer for every row of x."""
    if not getattr(guide, "tabular", False):
        return guide
    with torch.no_grad():
        start = {name: rows[index] for name, rows in guide.rows(x).items()}
    return guide.with_table(problem, len(index), start).to(x.device)


def _scattered(guide, num_data, device):
    """Starts for every datum: the family's own, with unit noise on each number of the row."""
    rows = {}
    for latent in guide.latents:
        if latent.local:
            initial = guide.families[latent.name].initial_row
            each = torch.stack([initial() for _ in range(num_data)])
            rows[latent.name] = (each + torch.randn_like(each)).to(device)
    return rows


def _better_rows(problem, one, other, x, margin):
    """The RowFit that has each datum's better row of two, and where the other's was: (n,).

    The other must be better by more than `margin` nats.
    """
    bounds = [
        draw(problem.model, found.guide, x, JUDGE_DRAWS, JUDGE_SEED).log_weight.double().mean(0)
        for found in (one, other)
    ]
    improved = bounds[1] > bounds[0] + margin
    with torch.no_grad():
        theirs = other.guide.rows(x)
        for name, rows in one.guide.rows(x).items():
            best = torch.where(improved[:, None], theirs[name], rows)
            one.guide.sources[name].rows.weight.copy_(best)
    steps, converged = max(one.steps, other.steps), one.converged and other.converged
    return RowFit(one.guide, steps, converged), improved


class Frozen(nn.Module):
    """A model whose parameters SVI neither sees nor differentiates."""

    def __init__(self, model):
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False).eval()

    def forward(self, *args):
        with poutine.block(hide_types=["param"]), _AsTheyAre():
            return self.model(*args)


class _AsTheyAre(Messenger):
    """Answers `param` messages with the module's own value; the store would ask for gradients."""

    def _pyro_param(self, message):
        if len(message["args"]) > 1 and isinstance(message["args"][1], nn.Parameter):
            message["value"] = message["args"][1]
            message["done"] = True

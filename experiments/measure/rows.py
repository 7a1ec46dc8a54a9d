"""The best member of a guide's family for every datum, with the model frozen.

The convergence rule: Adam on all rows of a block at once, at a rate of 0.1, with eight draws a
datum and step (fewer, down to one, for more than 512 rows), or exact sums for discrete latents at
a rate of 0.5; whenever a window of 50 steps passes the test of `experiments.svi.stopping.flat` the
rate falls to a tenth, and the third such window ends the fit.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import nn

from experiments.svi.config import FitConfig
from experiments.svi.estimators import resolve
from experiments.svi.loop import train
from experiments.svi.run import Run

RULE = FitConfig(
    steps=2000,
    batch_size=None,
    learning_rate=0.1,
    decay=1.0,
    flat_window=50,
    flat_drops=2,
)
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RowFit:
    """A guide with a fitted row for each datum, and what that took."""

    guide: nn.Module
    steps: int
    converged: bool


def fit_rows(problem, guide, x, start=None, rule=RULE):
    """Fit a free row of the guide's family to every row of x (n, d), the model as it is.

    start: {latent: (n, num_parameters)}, the family's own start where None.  steps of the answer
    is the largest number over blocks of rows, converged whether every block met the rule.
    """
    x = problem.check_support(x)
    if not any(latent.local for latent in problem.latents):
        return RowFit(guide, 0, True)
    config = resolve(rule, problem)
    particles = min(8, max(1, ROWS_AT_ONCE // len(x)))
    exact = config.estimator == "enumeration"
    suited = {"learning_rate": 0.5} if exact else {"num_particles": particles}
    config = config.model_copy(update=suited)
    frozen = Frozen(problem.model)
    blocks = torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE)
    gpus = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(0)
        whole = guide.with_table(problem, len(x), start).to(x.device)
        runs = [_fit_block(problem, frozen, whole, x, block, config) for block in blocks]
    return RowFit(
        whole, max(run.step for run in runs), all(run.flats > rule.flat_drops for run in runs)
    )


def _fit_block(problem, frozen, whole, x, block, config):
    """Fit the rows of one block, and put them into the whole table."""
    start = {name: rows.detach() for name, rows in whole.rows(x).items()}
    start = {name: rows[block] for name, rows in start.items()}
    part = whole.with_table(problem, len(block), start).to(x.device)
    run = Run(frozen, part, x[block], config, seed=0)
    train(run, problem)
    for name, rows in part.rows(x[block]).items():
        whole.sources[name].rows.weight.data[block] = rows.detach()
    return run


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

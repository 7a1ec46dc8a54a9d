"""The loop: `pyro.infer.SVI` with `Trace_ELBO`, minibatches by index, decay, a stopping rule."""

import warnings
from contextlib import contextmanager

import pyro
import torch
from pyro.infer import SVI

from experiments.svi.estimators import FitError, elbo
from experiments.svi.stopping import flat
from experiments.svi.updates import rate_factor


def train(run, problem, after_step=lambda run: None):
    """Take gradient steps until the budget is spent or the loss is flat.

    after_step(run) is called after every step; it may save the run, and stop it by raising.
    Raises FitError, which names the site and the step, where the loss is not finite.
    """
    model, guide = run.modules["model"], run.modules["guide"]
    with isolated():
        bound = elbo(run.config, problem, run.modules)
        svi = SVI(model, guide, run.optimizer, bound)
        while not run.finished:
            run.optimizer.set_factor(rate_factor(run.config, run.step) * 0.1**run.flats)
            bound.step = run.step
            try:
                loss = svi.step(run.data, run.batches.at(run.step))
            except FitError as error:
                raise FitError(f"step {run.step}: {error}") from error
            run.tick(loss)
            see_whether_finished(run)
            after_step(run)


def see_whether_finished(run):
    """Mark a run whose budget is spent, or whose loss has been flat often enough."""
    if _window_is_flat(run):
        run.flats += 1
    run.finished = run.step >= run.config.steps or run.flats > run.config.flat_drops


@contextmanager
def isolated():
    """Pyro with an empty parameter store of its own, and without validation at every step."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        # A loss that is not finite is an error here, not a warning.
        warnings.filterwarnings("ignore", message="Encountered NaN")
        yield


def _window_is_flat(run):
    """Whether a window of epochs ends here and the loss did not fall within it."""
    window, epoch = run.config.flat_window, run.batches.steps_per_epoch
    if window == 0 or run.step % (window * epoch):
        return False
    means = torch.tensor(run.losses[-window * epoch :]).reshape(window, epoch).mean(1)
    return flat(means, run.config.flat_level, run.config.flat_tolerance)

"""Training steps by the fused step and, with the same noise and batches, by Pyro's SVI."""

import torch
from pyro.infer import SVI

from experiments.svi import engine, noise
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from experiments.svi.loop import isolated
from experiments.svi.run import Run
from experiments.svi.stacked import shuffled
from experiments.svi.updates import rate_factor

CPU = torch.device("cpu")


def started(problem, guide, seeds=(0,), **settings):
    """Runs at their first step, one a seed."""
    config = resolve(FitConfig(**({"engine": "compiled"} | settings)), problem)
    return [Run.start(problem, guide, config, seed, CPU) for seed in seeds]


def train_eagerly(run, problem, steps=None):
    """Take steps by `pyro.infer.SVI` on the fused step's noise and batches."""
    batches, bound = run.batches, elbo(run.config, problem, run.modules)

    def loss_and_grads(*args):
        with noise.Keyed(noise.fold(noise.fold(torch.tensor(run.seed), 1), run.step)):
            return bound.loss_and_grads(*args)

    with isolated():
        model, guide = run.modules["model"], run.modules["guide"]
        svi = SVI(model, guide, run.optimizer, bound.loss, loss_and_grads)
        while run.step < (steps or run.config.steps):
            epoch, position = divmod(run.step, batches.steps_per_epoch)
            if batches.minibatches and position == 0:
                batches.orders = shuffled(run.seed, epoch, 1, batches.num_data, CPU)
            run.optimizer.set_factor(rate_factor(run.config, run.step))
            bound.step = run.step
            run.tick(svi.step(run.data, batches.rows(run.step)))
    return run


def train(runs, problem):
    """Train runs by the engine that their config names."""
    engine.train(runs, problem)
    return runs


def parameters(run):
    """{name: tensor} of a run's parameters, its optimizer's moments, and its losses."""
    found = {name: p.detach().clone() for name, p in run.modules.named_parameters()}
    found |= {name: value.clone() for name, value in run.optimizer_tensors().items()}
    return found | {"losses": torch.tensor(run.losses)}


def assert_close(run, other, rtol=1e-5, atol=1e-6):
    """Two runs have the same parameters, moments and losses, up to rounding."""
    one, two = parameters(run), parameters(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, two[name], rtol=rtol, atol=atol, check_dtype=False, msg=lambda m, n=name: n + m
        )


def assert_equal(run, other):
    """Two runs have the same parameters, moments and losses, bit for bit."""
    one, two = parameters(run), parameters(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name

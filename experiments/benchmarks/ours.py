"""This project's three engines on a case.

Each is `prepare(case)` -> `steps(n)`, and compiles in the first call of `steps`, none before.
"""

from copy import deepcopy

from experiments.benchmarks import pyro_svi
from experiments.svi.compiled_elbo import CompiledTrace_ELBO, CompiledTraceEnum_ELBO
from experiments.svi.config import FitConfig
from experiments.svi.engine import advance
from experiments.svi.estimators import resolve
from experiments.svi.fused import Fused
from experiments.svi.loop import train
from experiments.svi.run import Run
from guides.sources import Table

BUDGET = 10**6  # steps, more than a benchmark takes


def eager(case):
    """The loop around `pyro.infer.SVI` as `experiments.fit(engine="eager")` runs it."""
    problem = case.built()[0]
    run = start(case)

    def steps(n):
        run.config = run.config.model_copy(update={"steps": run.step + n})
        run.finished = False
        train(run, problem)
        return run.losses[-1] * len(run.data)

    return steps


def compiled(case):
    """`pyro.infer.SVI` with CompiledTrace_ELBO."""
    elbo = CompiledTraceEnum_ELBO if case.discrete else CompiledTrace_ELBO
    return pyro_svi.prepare(case, validate=False, elbo=elbo(max_plate_nesting=1))


def fused(case):
    """The fused step, for all seeds of the case at once."""
    problem = case.built()[0]
    runs = [start(case, seed, steps=BUDGET) for seed in range(case.seeds)]
    step = Fused(runs, problem)

    def steps(n):
        if step.run is None:
            step.prepare()
        while n:
            n -= advance(runs, step, n)
        return runs[0].losses[-1] * len(case.data)

    return steps


def start(case, seed=None, **settings):
    """A run of one seed at the case's start, at a constant rate, its tables row-wise."""
    modules = case.modules(deepcopy(case.built()))
    for module in modules.modules():
        if isinstance(module, Table):
            module.sparse()
    config = FitConfig(
        batch_size=case.batch_size,
        learning_rate=case.learning_rate,
        row_learning_rate=case.learning_rate,
        decay=1.0,
        **settings,
    )
    config = resolve(config, case.built()[0])
    seed = case.seed if seed is None else seed
    return Run(modules["model"], modules["guide"], case.data, config, seed)

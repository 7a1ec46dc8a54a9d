"""This project's three engines on a case.

Each is `prepare(case)` -> `steps(n)`, and compiles in the first call of `steps`, none before.
"""

from copy import deepcopy

from experiments.benchmarks.cases import Absent
from experiments.svi.config import FitConfig
from experiments.svi.estimators import resolve
from experiments.svi.loop import train
from experiments.svi.run import Run
from guides.sources import Table


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
    raise Absent("CompiledTrace_ELBO is not wired here yet")


def fused(case):
    """The fused step, for all seeds of the case at once."""
    raise Absent("the fused step is not wired here yet")


def start(case):
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
    )
    config = resolve(config, case.built()[0])
    return Run(modules["model"], modules["guide"], case.data, config, case.seed)

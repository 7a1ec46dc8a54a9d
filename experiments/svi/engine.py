"""Which engine runs the steps, and the loop around the fused step.

compiled  one fused step for all seeds, recorded and compiled: experiments/svi/fused.py
recorded  the same step as it was recorded, without the compiler's time and gain
eager     `pyro.infer.SVI` at every step, a seed after the other: experiments/svi/loop.py
auto      recorded from RECORDED steps on, compiled from COMPILED on, where each pays
"""

import time
import warnings

import torch

from experiments.svi import loop
from experiments.svi.closed_form import solve
from experiments.svi.compiler import CannotCompile
from experiments.svi.estimators import FitError, blame
from experiments.svi.fused import Fused
from experiments.svi.record import CannotRecord
from experiments.svi.stacked import KEPT

RECORDED = 1000
"""Eager steps of a small model, of all seeds, in whose time a step is recorded."""
COMPILED = 10_000
"""Recorded steps, of all seeds together, that a compiler speeds up by the time that it takes."""
CHUNK_SECONDS = 0.1
"""How long the loop leaves the compiled step alone."""


def choose(config, runs):
    """The engine that these runs take: "compiled", "recorded" or "eager"."""
    if config.engine != "auto":
        return config.engine
    if config.steps >= COMPILED:
        return "compiled"
    return "recorded" if config.steps * len(runs) >= RECORDED else "eager"


def train(runs, problem, after_steps=lambda runs: None):
    """Train runs of one problem and config until each is finished, or has an `error`.

    after_steps(runs) is called after every step or few; it may save them, or stop all by raising.
    What cannot be compiled is trained as recorded, and what cannot be recorded eagerly, after a
    warning that says why.
    """
    if runs[0].config.estimator == "closed_form":
        return _solve(runs, problem, after_steps)
    engine = choose(runs[0].config, runs)
    while engine != "eager" and any(run.alive for run in runs):
        try:
            for group, fused in _prepared(runs, problem, engine):
                _train_fused(group, fused, after_steps)
        except CannotCompile as error:
            warnings.warn(f"the steps run as recorded, not compiled: {error}", stacklevel=2)
            engine = "recorded"
        except CannotRecord as error:
            warnings.warn(f"the steps run eagerly, not {engine}: {error}", stacklevel=2)
            engine = "eager"
    if engine == "eager":
        for run in runs:
            if run.alive:
                _train_eagerly(run, problem, after_steps)


def _solve(runs, problem, after_steps):
    for run in runs:
        if run.alive:
            solve(run, problem)
            after_steps([run])


def _train_eagerly(run, problem, after_steps):
    run.engine = {"engine": "eager", "seeds_together": 1, "compile_seconds": 0.0}
    run.resume_random()
    run.start_clock()
    try:
        loop.train(run, problem, lambda run: after_steps([run]))
    except FitError as error:
        run.error = error


def _prepared(runs, problem, engine):
    """(runs, their fused step): all of them as one, else one by one.

    Raises CannotRecord or CannotCompile where no run has taken a step yet.
    """
    if len(runs) > 1:
        try:
            yield runs, _fused(runs, problem, engine)
            return
        except CannotRecord as error:
            reason = str(error)
        first = _fused(runs[:1], problem, engine)
        warnings.warn(f"the seeds are trained one by one, not together: {reason}", stacklevel=4)
        yield runs[:1], first
        runs = runs[1:]
    for run in runs:
        if run.alive:
            yield [run], _fused([run], problem, engine)


def _fused(runs, problem, engine):
    fused = Fused(runs, problem)
    fused.prepare(engine == "compiled")
    for run in runs:
        run.engine = {
            "engine": engine,
            "seeds_together": len(runs),
            "compile_seconds": fused.compile_seconds,
        }
    return fused


def _train_fused(runs, fused, after_steps):
    """Steps in chunks that end where the host has something to do."""
    chunk = 1
    while any(run.alive for run in runs):
        started = time.perf_counter()
        count = advance(runs, fused, chunk)
        after_steps(runs)
        pace = (time.perf_counter() - started) / count
        chunk = max(1, min(2 * chunk, int(CHUNK_SECONDS / pace)))
    fused.release()


def advance(runs, fused, at_most):
    """Take steps, so many that the host has nothing to do between; returns how many."""
    fused.shuffle()
    count = min(at_most, KEPT, *(_steps_alone(run) for run in runs if run.alive))
    started = time.perf_counter()
    fused.run(count)
    losses, steps = fused.losses(), fused.tensors["step"].tolist()
    seconds = (time.perf_counter() - started) / sum(run.alive for run in runs)
    for run, kept, step in zip(runs, losses, steps, strict=True):
        if run.alive:
            _note(run, kept, step, count, seconds)
    fused.tell()
    return count


def _steps_alone(run):
    """How many steps a run may take before its batches, its budget or its rule want the host."""
    batches, window = run.batches, run.config.flat_window * run.batches.steps_per_epoch
    rounds = [window] if window else []
    if batches.minibatches:
        rounds.append(batches.steps_per_epoch * len(batches.orders))
    return min([run.config.steps - run.step, *(n - run.step % n for n in rounds)])


def _note(run, kept, step, count, seconds):
    """Take a chunk's losses over into a run, and see whether it ends; kept: (KEPT,)."""
    taken = step - run.step
    places = torch.arange(run.step, step) % KEPT
    run.extend(kept[places], seconds * taken / count)
    if taken < count:
        value = kept[step % KEPT].item() * len(run.data)
        model, guide = run.modules["model"], run.modules["guide"]
        with loop.isolated():
            where = blame(model, guide, (run.data, run.batches.rows(run.step)))
        run.error = FitError(f"step {step}: the loss is {value} {where}")
    else:
        loop.see_whether_finished(run)

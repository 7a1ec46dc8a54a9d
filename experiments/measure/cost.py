"""What a guide costs: the seconds in which new data get their q, and the memory of a training step.

Seconds: of a guide with an answer for new rows, one pass `guide(x)` for a batch of held-out rows,
by Pyro and with one draw; of a table, the search for the rows of the held-out data with the model
frozen.  Each is divided by the number of rows.
Memory: what a seed's training keeps (parameters and buffers of model and guide, the optimizer's
moments) and the largest amount of memory that one eager step takes beside it at a time.  On the CPU
that is counted in the tensors that torch's operators return, since a process there has one peak
for its life, whatever ran before; on a GPU torch's allocator counts.  The data are in neither.
"""

import statistics
import time
import weakref
from contextlib import contextmanager
from copy import deepcopy

import torch
from pyro.infer import SVI
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.measure.streams import stream
from experiments.svi import device as devices
from experiments.svi.discrete import own_module
from experiments.svi.estimators import elbo
from experiments.svi.run import Run

BATCH = 450
"""Held-out rows of a pass."""
PASSES = 7
"""Timed at a time, after one that is not."""


class Clock:
    """Seconds of what runs inside `with clock:`, and of `passes` that are taken between."""

    def __init__(self, guide, x):
        self.guide, self.rows = guide, x[:BATCH]
        self.tabular = getattr(guide, "tabular", False)
        self.search, self.passes = 0.0, []

    @contextmanager
    def searching(self):
        """Count what runs inside as the search for the rows of new data."""
        devices.wait_for(self.rows.device)
        started = time.perf_counter()
        yield
        devices.wait_for(self.rows.device)
        self.search = time.perf_counter() - started

    @torch.no_grad()
    def take(self):
        """Time a few passes of the guide, where it has an answer for new rows.

        It is called between other measures, so that a busy spell of the machine meets only some.
        """
        if self.tabular:
            return
        with stream(0, self.rows.device):
            self.guide(self.rows)
            for _ in range(PASSES):
                started = time.perf_counter()
                self.guide(self.rows)
                devices.wait_for(self.rows.device)
                self.passes.append(time.perf_counter() - started)


class NoClock:
    """A clock where costs were not asked for, or there are no new data."""

    def take(self):
        """Nothing."""

    @contextmanager
    def searching(self):
        """Nothing."""
        yield


def clock(guide, x, wanted):
    """A Clock of the guide's answer for the rows x, or one that does nothing."""
    return Clock(guide, x) if wanted else NoClock()


def seconds_per_new_datum(taken, num_data):
    """What a clock says, as a record holds it; nothing where it took no times.

    num_data: of the search, where the guide is a table.
    """
    if isinstance(taken, NoClock):
        return {}
    if taken.tabular:
        by, seconds, count = "search", taken.search, num_data
    else:
        by, seconds, count = "pass", statistics.median(taken.passes), len(taken.rows)
    return {"seconds_per_new_datum": seconds / count, "new_data": count, "new_data_by": by}


def memory_of_training(fitted, problem):
    """Bytes that a seed's training keeps, and takes at a step: for the record of a finished Run.

    memory_bytes = state_bytes + step_bytes.  The run stays as it is: the step is that of a copy.
    """
    run = _copy(fitted)
    found = {"state_bytes": 0, "step_bytes": 0}
    if run.config.estimator != "closed_form":
        with stream(0, run.data.device):
            model, guide = run.modules["model"], run.modules["guide"]
            svi = SVI(model, guide, run.optimizer, elbo(run.config, problem, run.modules))
            svi.step(run.data, run.batches.at(0))  # makes the moments
            for parameter in run.modules.parameters():
                parameter.grad = None
            rows = run.batches.at(0)
            found["step_bytes"] = peak_bytes(lambda: svi.step(run.data, rows), run.data)
    kept = [*run.modules.parameters(), *run.modules.buffers(), *run.optimizer.tensors().values()]
    found["state_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return found | {"memory_bytes": sum(found.values())}


def _copy(fitted):
    modules = deepcopy(fitted.modules)
    model, guide, own = modules["model"], modules["guide"], own_module(modules)
    return Run(model, guide, fitted.data, fitted.config, fitted.seed, own)


def peak_bytes(call, like):
    """The largest number of bytes that a call takes at a time beyond what was taken before it.

    like: a tensor on the device in question.
    """
    if like.is_cuda:
        devices.wait_for(like.device)
        before = torch.cuda.memory_allocated(like.device)
        torch.cuda.reset_peak_memory_stats(like.device)
        call()
        return torch.cuda.max_memory_allocated(like.device) - before
    with Storages() as storages:
        call()
    return storages.peak


class Storages(TorchDispatchMode):
    """Counts the bytes of tensors that operators return while it is on, and lets go with them.

    now: bytes that are alive; peak: their largest number.  Views and what is changed in place take
    nothing; what an operator takes and frees within itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            self._meet(storage, 0)  # it was there before, or it is known
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._meet(storage, storage.nbytes())
        return result

    def _meet(self, storage, size):
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._lose, key)

    def _lose(self, key):
        self.now -= self.sizes.pop(key)


def _storages(nest):
    """The storages of the tensors in a nest, those of a sparse one's two parts."""
    for leaf in tree_leaves(nest):
        if isinstance(leaf, torch.Tensor):
            parts = [leaf._indices(), leaf._values()] if leaf.is_sparse else [leaf]
            yield from (part.untyped_storage() for part in parts)

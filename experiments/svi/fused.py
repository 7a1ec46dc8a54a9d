"""The fused step: loss, gradients, clipping and optimizer of all seeds as one graph.

A step reads nothing from the host and tells it nothing: losses gather in a tensor until someone
wants them.
"""

import time
from contextlib import ExitStack, contextmanager

import torch
from torch._inductor.inductor_prims import force_stride_order
from torch.nn.utils.stateless import _reparametrize_module

from experiments.svi import noise
from experiments.svi.compiler import compile_graph
from experiments.svi.estimators import elbo
from experiments.svi.launch import repeated
from experiments.svi.loop import isolated
from experiments.svi.optimizer import is_own
from experiments.svi.record import CannotRecord, record, update_in_place, written_inputs
from experiments.svi.recordable import recordable
from experiments.svi.rewrite import WRITTEN_OUT
from experiments.svi.stacked import KEPT, StackedRuns
from experiments.svi.updates import clipped, schedule, updated


class Fused(StackedRuns):
    """Several runs of one problem and config, and the step that they share."""

    def __init__(self, runs, problem):
        super().__init__(runs)
        self.problem, self.run = problem, None

    def prepare(self, compiling=True):
        """Record the step, and compile it; afterwards `run(count)` takes it for all seeds.

        Raises CannotRecord or CannotCompile.
        """
        started, names, new = time.perf_counter(), list(self.tensors), {}

        def function(*tensors):
            new.update(self._step(dict(zip(names, tensors, strict=True))))
            return tuple(new.values())

        with isolated():
            graph, held = record(
                function, list(self.tensors.values()), WRITTEN_OUT if compiling else {}
            )
        _check(graph, held, len(self.runs))
        update_in_place(graph, {i: names.index(name) for i, name in enumerate(new)})
        inputs = [tensor.detach() for tensor in [*self.tensors.values(), *held]]
        step = compile_graph(graph, inputs) if compiling else _as_recorded(graph)
        # Not before: where this fails, the runs are trained in another way.
        self._share_memory()
        self.run = repeated(lambda: step(inputs), self.tensors["step"].device)
        self.compile_seconds = time.perf_counter() - started

    def _step(self, old):
        """The new values of everything that a step changes, by name."""
        index, step = self._index(old), old["step"]
        blocks = {name: _rows(old[name], index) for name in self.tables}
        values = self._split(old["parameters"]) if self.dense else {}
        values |= {name: self._parts(block)[0] for name, block in blocks.items()}
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        losses, surrogates, updates = self._each(leaves, index, old)
        gradients = self._gradients(surrogates, leaves)
        if self.config.clip_norm is not None:
            counted = {n: g for n, g in gradients.items() if not is_own(n)}
            gradients |= clipped(counted, self.config.clip_norm)
        if self.dense:
            flat = [
                gradients.pop(name).flatten(1) if s else gradients.pop(name)[:, None]
                for name, s in self.dense.items()
            ]
            gradients["parameters"] = torch.cat(flat, 1)
        alive = _kept(old["alive"] & losses.isfinite())
        new = {"alive": alive, "step": step + alive, "losses": self._noted(losses, old)}
        for name, value in updates.items():
            new[f"estimator.{name}"] = torch.where(alive, value, old[f"estimator.{name}"])
        at = _kept(schedule(self.config, step, old["steps"]))
        for name, gradient in gradients.items():
            new |= self._updated(name, gradient, blocks.get(name), index, alive, at, old)
        return new

    def _gradients(self, surrogates, leaves):
        """{name: (S, ...)} of every leaf; zero, which moves nothing, where it takes no part."""
        values = list(leaves.values())
        found = torch.autograd.grad(surrogates.sum(), values, allow_unused=True)
        if self.config.optimizer == "adamw" and any(g is None for g in found):
            raise CannotRecord("a parameter that takes no part would shrink under adamw")
        pairs = zip(leaves.items(), found, strict=True)
        return {n: torch.zeros_like(v) if g is None else g for (n, v), g in pairs}

    def _updated(self, name, gradient, block, index, alive, at, old):
        """New values of one block of parameters and of its moments, by name."""
        sparse = block is not None
        keys = [name, *(f"{name}|{moment}" for moment in self.moments)]
        before = self._parts(block) if sparse else [old[key] for key in keys]
        rate = _kept(old["row_rate" if sparse else "rate"] * old["fall"] * at[:, 0])
        after = updated(self.config, before[0], before[1:], gradient, rate, at[:, 1:], sparse)
        living = alive.view(-1, *(1,) * (gradient.dim() - 1))
        after = [torch.where(living, now, was) for now, was in zip(after, before, strict=True)]
        if sparse:
            return {name: _with_rows(old[name], index, torch.cat(after, -1))}
        return dict(zip(keys, after, strict=True))

    def _noted(self, losses, old):
        """The kept losses with those of this step, in nats a datum, where the seed was alive."""
        place = (old["step"] % KEPT)[:, None]
        here = torch.arange(KEPT, device=losses.device) == place
        return torch.where(
            here & old["alive"][:, None], losses[:, None] / len(old["data"]), old["losses"]
        )

    def _index(self, old):
        """Rows of each seed's minibatch: (S, b), None where every step takes all."""
        if not self.batches.minibatches:
            return None
        orders = old["orders"].flatten(1)
        start = old["step"] * self.batches.size % orders.shape[1]
        places = start[:, None] + torch.arange(self.batches.size, device=start.device)
        return _kept(orders.gather(1, places))

    def _each(self, leaves, index, old):
        """Losses, surrogates, and what the estimator keeps, by name: (S,) each."""
        held = [*self.frozen, *self.buffers, *self.running]
        values = leaves | {name: old[name] for name in held}
        key = _kept(noise.fold(noise.fold(old["seed"], 1), old["step"]))

        step = old["step"] if self.config.annealing_steps else None  # else no part of the graph

        def one(values, index, key, step):
            with self._filled(values), noise.Keyed(key):
                model, guide = self.modules["model"], self.modules["guide"]
                bound = elbo(self.config, self.problem, self.modules)
                bound.step = step
                return *bound.terms(model, guide, old["data"], index), bound.updates

        given = index, key, step
        if len(self.runs) > 1:
            axes = [None if part is None else 0 for part in given]
            return torch.vmap(one, (0, *axes))(values, *given)
        # A batch of one would turn each matrix product into a batch of them.
        values = {name: value[0] for name, value in values.items()}
        parts = (None if part is None else part[0] for part in given)
        loss, surrogate, updates = one(values, *parts)
        return loss[None], surrogate[None], {name: now[None] for name, now in updates.items()}

    @contextmanager
    def _filled(self, values):
        """The modules of the first run with these parameters, buffers and rows of tables."""
        with ExitStack() as stack:
            for name, table in self.tables.items():
                stack.enter_context(table.given(values[name]))
            own = {name: value for name, value in values.items() if name not in self.tables}
            stack.enter_context(_reparametrize_module(self.modules, own, tie_weights=True))
            stack.enter_context(recordable())
            yield


def _as_recorded(graph):
    """A graph's operations one after the other, as a function of the list of its inputs."""
    for node in graph.graph.find_nodes(op="call_function", target=force_stride_order):
        node.replace_all_uses_with(node.args[0])  # without a compiler every tensor is kept
        graph.graph.erase_node(node)
    graph.recompile()
    function = torch.no_grad()(graph.forward)
    return lambda inputs: function(*inputs)


def _check(graph, held, seeds):
    """Refuse graphs that train less than they use, or mix seeds, or draw what none can repeat.

    Raises CannotRecord.
    """
    if any(tensor.requires_grad for tensor in held):
        raise CannotRecord("it uses a parameter that is not among its modules' own")
    if seeds > 1 and written_inputs(graph):
        raise CannotRecord("they write to a tensor, and each seed has its own")
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CannotRecord(f"it draws by {node.target}, which has no noise by counter")


def _kept(tensor):
    """The tensor itself, which compiled code makes once and keeps, not anew wherever it is read."""
    return force_stride_order(tensor, tensor.stride())


def _rows(table, index):
    """Rows of each seed's table: (S, n, q) at (S, b) -> (S, b, q); None takes all."""
    if index is None:
        return table
    # Fetched by a loop of its own, in which the processor waits for many rows at a time.
    return _kept(table.flatten(0, 1).index_select(0, _flat(table, index)).unflatten(0, index.shape))


def _with_rows(table, index, rows):
    """The table with rows (S, b, q) at (S, b): written in place, once it is compiled."""
    if index is None:
        return rows
    flat = table.flatten(0, 1).index_put((_flat(table, index),), rows.flatten(0, 1))
    return flat.unflatten(0, table.shape[:2])


def _flat(table, index):
    """Places in all seeds' rows together."""
    offset = torch.arange(len(table), device=index.device)[:, None] * table.shape[1]
    return (index + offset).flatten()

"""The fused step: loss, gradients, clipping and optimizer of all seeds as one compiled graph.

Whatever a step changes stands in tensors whose first axis is the seed, and is changed in place;
the modules of the runs look into the same memory.  A step reads nothing from the host and tells
it nothing: losses gather in a tensor until someone wants them.
"""

import math
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
from experiments.svi.record import CannotRecord, record, update_in_place, written_inputs
from experiments.svi.recordable import recordable
from experiments.svi.updates import STATE, clipped, schedule, updated
from guides.sources import Table

KEPT = 256
"""How many losses a seed's row keeps before someone has to read them."""
ORDERED = 2**18
"""Rows of as many epochs as are put in order at once."""


class Fused:
    """The step of several runs of one problem and config, S of them.

    tensors: everything that a step reads, by name, and some that it writes.  "parameters" holds
    all of a seed's dense parameters in a row, (S, p), and "parameters|MOMENT" their moments.  A
    table is (S, n, 3 q): beside a row's q parameters stand their moments, so that a step fetches
    all of a row from one place in memory.  "step", "alive" (S,); "losses" (S, KEPT), nats a datum.
    """

    def __init__(self, runs, problem):
        self.runs, self.config, self.problem = runs, runs[0].config, problem
        self.modules, self.batches = runs[0].modules, runs[0].batches
        self.moments = STATE[self.config.optimizer]
        named = dict(self.modules.named_parameters())
        self.frozen = [name for name, p in named.items() if not p.requires_grad]
        self.tables = _tables(self.modules)
        known = {*self.frozen, *self.tables}
        self.dense = {name: p.shape for name, p in named.items() if name not in known}
        if len({named[name].dtype for name in self.dense}) > 1:
            raise CannotRecord("its parameters are of different types")
        self.tensors = self._changing() | self._fixed()
        self.run, self.first_epochs = None, [None] * len(runs)

    def compile(self):
        """Record and compile the step; afterwards `run(count)` takes it for all seeds.

        Raises CannotRecord or CannotCompile.
        """
        started, names, new = time.perf_counter(), list(self.tensors), {}

        def function(*tensors):
            new.update(self._step(dict(zip(names, tensors, strict=True))))
            return tuple(new.values())

        with isolated():
            graph, held = record(function, list(self.tensors.values()))
        _check(graph, held, len(self.runs))
        update_in_place(graph, {i: names.index(name) for i, name in enumerate(new)})
        inputs = [tensor.detach() for tensor in [*self.tensors.values(), *held]]
        compiled = compile_graph(graph, inputs)
        # Not before: where this fails, the runs are trained in another way.
        self._share_memory()
        self.run = repeated(lambda: compiled(inputs), self.tensors["step"].device)
        self.compile_seconds = time.perf_counter() - started

    def shuffle(self):
        """Draw the orders of the next epochs for every seed that has come to the end of its own."""
        if not self.batches.minibatches:
            return
        for i, run in enumerate(self.runs):
            orders, epoch = run.batches.orders, run.step // run.batches.steps_per_epoch
            first = epoch - epoch % len(orders)
            if run.alive and self.first_epochs[i] != first:
                self.first_epochs[i] = first
                new = shuffled(run.seed, first, len(orders), run.batches.num_data, orders.device)
                orders.copy_(new[:, : orders.shape[1]])

    def losses(self):
        """The kept losses of every seed, (S, KEPT), once all steps have been taken."""
        return self.tensors["losses"].cpu().clone()

    def tell(self):
        """Let the step know what the host has decided of each run."""
        device = self.tensors["alive"].device
        for name, values in (
            ("alive", [run.alive for run in self.runs]),
            ("fall", [0.1**run.flats for run in self.runs]),
        ):
            self.tensors[name].copy_(torch.tensor(values, device=device))

    def release(self):
        """Give every run memory of its own again."""
        for run in self.runs:
            for parameter in run.modules.parameters():
                parameter.data = parameter.data.clone()

    def optimizer_tensors(self, seed):
        """The optimizer's state of a seed's parameters, named as torch's optimizers name it."""
        step = self.tensors["step"][seed].float()
        found = {}
        for name in [*self.dense, *self.tables]:
            if self.moments:
                found[f"{name}|step"] = step.clone()
            for moment in self.moments:
                found[f"{name}|{moment}"] = self._view(name, seed, moment)
        return found

    def _changing(self):
        """What a step changes."""
        states = [dict(run.modules.named_parameters()) for run in self.runs]
        flat = [torch.cat([s[n].detach().flatten() for n in self.dense]) for s in states]
        tensors = {}
        if self.dense:
            tensors["parameters"] = torch.stack(flat)
            for moment in self.moments:
                tensors[f"parameters|{moment}"] = torch.zeros_like(tensors["parameters"])
        for name in self.tables:
            rows = torch.stack([state[name].detach() for state in states])
            moments = [torch.zeros_like(rows) for _ in self.moments]
            tensors[name] = torch.cat([rows, *moments], -1)
        device = self.runs[0].data.device
        tensors["step"] = torch.tensor([run.step for run in self.runs], device=device)
        tensors["alive"] = torch.tensor([run.alive for run in self.runs], device=device)
        tensors["losses"] = torch.zeros(len(self.runs), KEPT, device=device)
        return tensors

    def _fixed(self):
        """What a step reads; the host may change "fall" and "orders" between two."""
        runs, data = self.runs, self.runs[0].data
        values = {
            "seed": [run.seed for run in runs],
            "rate": [run.config.learning_rate for run in runs],
            "row_rate": [run.config.row_learning_rate for run in runs],
            "fall": [0.1**run.flats for run in runs],
        }
        tensors = {name: torch.tensor(v, device=data.device) for name, v in values.items()}
        tensors |= {"data": data, "steps": torch.tensor(self.config.steps, device=data.device)}
        if self.batches.minibatches:
            # Of several epochs, so that the host has less to do.
            epochs = max(1, min(KEPT // self.batches.steps_per_epoch, ORDERED // len(data)))
            length = self.batches.steps_per_epoch * self.batches.size
            shape = len(runs), epochs, length
            tensors["orders"] = torch.zeros(shape, dtype=torch.int64, device=data.device)
        others = [dict(r.modules.named_buffers()) for r in runs]
        states = [dict(r.modules.named_parameters()) for r in runs]
        tensors |= {n: torch.stack([s[n].detach() for s in states]) for n in self.frozen}
        self.buffers = [
            n for n, b in others[0].items() if any(not torch.equal(b, o[n]) for o in others[1:])
        ]
        return tensors | {n: torch.stack([o[n] for o in others]) for n in self.buffers}

    def _share_memory(self):
        """Make the runs' parameters views of the stacked ones, and fill in their moments."""
        for seed, run in enumerate(self.runs):
            known = run.optimizer.tensors()
            for name, parameter in run.modules.named_parameters():
                if name in self.frozen:
                    continue
                parameter.data = self._view(name, seed)
                for moment in self.moments:
                    if f"{name}|{moment}" in known:
                        self._view(name, seed, moment).copy_(known[f"{name}|{moment}"])
            run.optimizer_tensors = lambda seed=seed: self.optimizer_tensors(seed)
            if self.batches.minibatches:
                run.batches.orders = self.tensors["orders"][seed]

    def _view(self, name, seed, moment=None):
        """A seed's parameter, or one of its moments, where it stands in the stacked tensors."""
        if name in self.tables:
            place = 0 if moment is None else 1 + self.moments.index(moment)
            return self._parts(self.tensors[name])[place][seed]
        key = "parameters" if moment is None else f"parameters|{moment}"
        return self._split(self.tensors[key])[name][seed]

    def _parts(self, rows):
        """A table's parameters and their moments: (..., 3 q) -> three of (..., q)."""
        return rows.chunk(1 + len(self.moments), -1)

    def _split(self, flat):
        """The dense parameters in rows of numbers: (S, p) -> {name: (S, ...)}."""
        parts = flat.split([math.prod(shape) for shape in self.dense.values()], 1)
        return {
            name: part.unflatten(1, shape) if shape else part[:, 0]
            for (name, shape), part in zip(self.dense.items(), parts, strict=True)
        }

    def _step(self, old):
        """The new values of everything that a step changes, by name."""
        index, step = self._index(old), old["step"]
        blocks = {name: _rows(old[name], index) for name in self.tables}
        values = self._split(old["parameters"]) if self.dense else {}
        values |= {name: self._parts(block)[0] for name, block in blocks.items()}
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        losses, surrogates = self._each(leaves, index, old)
        gradients = self._gradients(surrogates, leaves)
        if self.config.clip_norm is not None:
            gradients = clipped(gradients, self.config.clip_norm)
        if self.dense:
            flat = [
                gradients.pop(name).flatten(1) if s else gradients.pop(name)[:, None]
                for name, s in self.dense.items()
            ]
            gradients["parameters"] = torch.cat(flat, 1)
        alive = _kept(old["alive"] & losses.isfinite())
        new = {"alive": alive, "step": step + alive, "losses": self._noted(losses, old)}
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
        """Losses and surrogates of every seed: (S,) each."""
        values = leaves | {name: old[name] for name in [*self.frozen, *self.buffers]}
        key = _kept(noise.fold(noise.fold(old["seed"], 1), old["step"]))

        def one(values, index, key):
            with self._filled(values), noise.Keyed(key):
                model, guide = self.modules["model"], self.modules["guide"]
                return elbo(self.config, self.problem).terms(model, guide, old["data"], index)

        if len(self.runs) > 1:
            return torch.vmap(one, (0, None if index is None else 0, 0))(values, index, key)
        # A batch of one would turn each matrix product into a batch of them.
        values = {name: value[0] for name, value in values.items()}
        loss, surrogate = one(values, None if index is None else index[0], key[0])
        return loss[None], surrogate[None]

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


def _tables(modules):
    """{name of the parameter: table} of the tables whose rows are trained."""
    return {
        f"{name}.rows.weight": module
        for name, module in modules.named_modules()
        if isinstance(module, Table) and module.rows.weight.requires_grad
    }


def shuffled(seed, first, count, num_data, device):
    """The order of the rows in `count` epochs: (count, num_data), by seed and epoch alone."""
    generator = torch.Generator(device)
    keys = noise.fold(noise.fold(torch.tensor(seed), 2), first + torch.arange(count))
    orders = []
    for key in keys.tolist():
        generator.manual_seed(key % 2**63)
        orders.append(torch.randperm(num_data, generator=generator, device=device))
    return torch.stack(orders)


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

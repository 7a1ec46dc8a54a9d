"""`StackedRuns`: the state of several runs in tensors whose first axis is the seed.

What a fused step changes it changes in place there; the modules of the runs look into the same
memory.
"""

import math

import torch

from experiments.svi import noise
from experiments.svi.baselines import Running
from experiments.svi.record import CannotRecord
from experiments.svi.updates import STATE
from guides.sources import Table

KEPT = 256
"""How many losses a seed's row keeps before someone has to read them."""
ORDERED = 2**18
"""Rows of as many epochs as are put in order at once."""


class StackedRuns:
    """Several runs of one problem and config, S of them.

    tensors: everything that a step reads, by name, also what it writes.  "parameters" holds
    all of a seed's dense parameters in a row, (S, p), and "parameters|MOMENT" their moments.  A
    table is (S, n, 3 q): beside a row's q parameters stand their moments, so that a step fetches
    all of a row from one place in memory.  "step", "alive" (S,); "losses" (S, KEPT), nats a datum.
    """

    def __init__(self, runs):
        self.runs, self.config = runs, runs[0].config
        self.modules, self.batches = runs[0].modules, runs[0].batches
        self.moments = STATE[self.config.optimizer]
        named = dict(self.modules.named_parameters())
        self.frozen = [name for name, p in named.items() if not p.requires_grad]
        self.tables = _tables(self.modules)
        self.running = _running(self.modules)
        known = {*self.frozen, *self.tables}
        self.dense = {name: p.shape for name, p in named.items() if name not in known}
        if len({named[name].dtype for name in self.dense}) > 1:
            raise CannotRecord("its parameters are of different types")
        self.tensors = self._changing() | self._fixed()
        self.first_epochs = [None] * len(runs)

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
            kept = [run.modules.get_buffer(name) for name in self.running]
            for tensor in [*run.modules.parameters(), *kept]:
                tensor.data = tensor.data.clone()

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
        tensors = {}
        if self.dense:
            flat = [torch.cat([s[n].detach().flatten() for n in self.dense]) for s in states]
            tensors["parameters"] = torch.stack(flat)
            for moment in self.moments:
                tensors[f"parameters|{moment}"] = torch.zeros_like(tensors["parameters"])
        for name in self.tables:
            rows = torch.stack([state[name].detach() for state in states])
            moments = [torch.zeros_like(rows) for _ in self.moments]
            tensors[name] = torch.cat([rows, *moments], -1)
        for name in self.running:
            tensors[name] = torch.stack([run.modules.get_buffer(name) for run in self.runs])
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
        self.buffers = [name for name in self.buffers if name not in self.running]
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
            for name in self.running:
                run.modules.get_buffer(name).data = self.tensors[name][seed]
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


def _tables(modules):
    """{name of the parameter: table} of the tables whose rows are trained."""
    return {
        f"{name}.rows.weight": module
        for name, module in modules.named_modules()
        if isinstance(module, Table) and module.rows.weight.requires_grad
    }


def _running(modules):
    """Names of the buffers that a step changes: those of running means."""
    return [
        f"{name}.{own}"
        for name, module in modules.named_modules()
        if isinstance(module, Running)
        for own, _ in module.named_buffers()
    ]


def shuffled(seed, first, count, num_data, device):
    """The order of the rows in `count` epochs: (count, num_data), by seed and epoch alone."""
    generator = torch.Generator(device)
    keys = noise.fold(noise.fold(torch.tensor(seed), 2), first + torch.arange(count))
    orders = []
    for key in keys.tolist():
        generator.manual_seed(key % 2**63)
        orders.append(torch.randperm(num_data, generator=generator, device=device))
    return torch.stack(orders)

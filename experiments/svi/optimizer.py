"""Adam over all trainable parameters at once, in the form that `pyro.infer.SVI` takes."""

import pyro
import torch
from torch import nn


class JointAdam(pyro.optim.PyroOptim):
    """One fused Adam for the dense parameters, one SparseAdam for the rows of tables.

    Pyro's own wrapper keeps an optimizer per parameter; one for all takes a third off a step.
    modules: a module that holds the model and the guide; parameters that require no gradient
    are left out.
    """

    def __init__(self, modules, learning_rate, row_learning_rate):
        rows = {
            id(module.weight)
            for module in modules.modules()
            if isinstance(module, nn.Embedding) and module.sparse
        }
        trainable = [(n, p) for n, p in modules.named_parameters() if p.requires_grad]
        self.names = {id(parameter): name for name, parameter in trainable}
        dense = [p for _, p in trainable if id(p) not in rows]
        sparse = [p for _, p in trainable if id(p) in rows]
        self.optimizers = []
        if dense:
            self.optimizers.append(torch.optim.Adam(dense, lr=learning_rate, fused=True))
        if sparse:
            self.optimizers.append(torch.optim.SparseAdam(sparse, lr=row_learning_rate))
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def __call__(self, params, *args, **kwargs):
        for optimizer in self.optimizers:
            optimizer.step()

    def set_factor(self, factor):
        """Multiply the rates of the first step by `factor`."""
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor

    def tensors(self):
        """The moments and step counts of every parameter, by name."""
        return {
            f"{self.names[id(parameter)]}|{key}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_tensors(self, tensors):
        """Go on from what `tensors` returned."""
        for optimizer in self.optimizers:
            sparse = isinstance(optimizer, torch.optim.SparseAdam)
            for parameter in optimizer.param_groups[0]["params"]:
                prefix = self.names[id(parameter)] + "|"
                state = {
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
                if sparse and "step" in state:
                    state["step"] = int(state["step"])
                if state:
                    optimizer.state[parameter] = state

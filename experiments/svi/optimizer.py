"""The optimizer over all trainable parameters at once, in the form that `pyro.infer.SVI` takes."""

import pyro
import torch
from torch import nn

DENSE = {
    "adam": lambda p, config: torch.optim.Adam(p, config.learning_rate, fused=True),
    "adamw": lambda p, config: torch.optim.AdamW(
        p, config.learning_rate, weight_decay=config.weight_decay, fused=True
    ),
    "sgd": lambda p, config: torch.optim.SGD(p, config.learning_rate),
}
SPARSE = {"adam": torch.optim.SparseAdam, "adamw": torch.optim.SparseAdam, "sgd": torch.optim.SGD}


def is_own(name):
    """Whether a parameter is the estimator's own, whose gradient counts in no norm."""
    return name.startswith("estimator.")


class JointOptimizer(pyro.optim.PyroOptim):
    """One optimizer of torch for the dense parameters, one for the rows of tables.

    Pyro's own wrapper keeps an optimizer per parameter; one for all takes a third off a step.
    modules: a module that holds the model and the guide; parameters that require no gradient
    are left out.
    """

    def __init__(self, modules, config):
        rows = {
            id(module.weight)
            for module in modules.modules()
            if isinstance(module, nn.Embedding) and module.sparse
        }
        trainable = [(n, p) for n, p in modules.named_parameters() if p.requires_grad]
        self.clip_norm = config.clip_norm
        self.names = {id(parameter): name for name, parameter in trainable}
        dense = [p for _, p in trainable if id(p) not in rows]
        sparse = [p for _, p in trainable if id(p) in rows]
        self.optimizers = []
        if dense:
            self.optimizers.append(DENSE[config.optimizer](dense, config))
        if sparse:
            kind = SPARSE[config.optimizer]
            self.optimizers.append(kind(sparse, lr=config.row_learning_rate))
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def __call__(self, params, *args, **kwargs):
        if self.clip_norm is not None:
            self._clip()
        for optimizer in self.optimizers:
            optimizer.step()

    def _clip(self):
        """Scale all gradients, also sparse ones, so that their joint norm is at most clip_norm."""
        parameters = [p for o in self.optimizers for p in o.param_groups[0]["params"]]
        parameters = [p for p in parameters if not is_own(self.names[id(p)])]
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = sum(
            (g.coalesce().values() if g.is_sparse else g).square().sum() for g in gradients
        )
        # As torch.nn.utils.clip_grad_norm_ does it.
        factor = (self.clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factor)

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

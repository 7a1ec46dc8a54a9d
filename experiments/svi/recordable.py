"""What Pyro does that recording, or `torch.vmap` over seeds, refuses, done as they take it."""

from contextlib import contextmanager
from unittest import mock

import torch
from pyro.ops.einsum import torch_log
from torch.overrides import TorchFunctionMode

from guides.inside import AsGiven


@contextmanager
def recordable():
    """Inside, Pyro programs can be recorded, also on parameters that are batches of seeds."""
    with AsGiven(), Detached(), mock.patch.object(torch_log, "safe_log", SafeLog.apply):
        yield


class Detached(TorchFunctionMode):
    """Answers `tensor.data`, of which enumeration reads the shape, by `tensor.detach()`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == torch.Tensor.data.__get__:
            return args[0].detach()
        return function(*args, **(kwargs or {}))


class SafeLog(torch.autograd.Function):
    """Pyro's logarithm, whose gradient at 0 is large and not infinite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.log()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / x.clamp(min=torch.finfo(x.dtype).eps)

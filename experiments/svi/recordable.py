"""What Pyro does that recording, or `torch.vmap` over seeds, refuses, done as they take it."""

import inspect
from contextlib import contextmanager
from unittest import mock

import pyro.infer.util as infer_util
import torch
from pyro.infer.util import Dice
from pyro.ops.einsum import torch_log
from pyro.poutine.messenger import Messenger
from torch.overrides import TorchFunctionMode


@contextmanager
def recordable():
    """Inside, Pyro programs can be recorded, also on parameters that are batches of seeds."""
    log = mock.patch.object(torch_log, "safe_log", SafeLog.apply)
    dot = mock.patch.object(infer_util, "_fulldot", expected)
    with AsGiven(), Answers(), log, dot:
        yield


class AsGiven(Messenger):
    """Lets `pyro.module` take a network's parameters as they stand, without Pyro's store."""

    def _pyro_param(self, message):
        if not message["done"] and "$$$" in message["name"]:
            message["value"], message["done"] = message["args"][1], True


class Answers(TorchFunctionMode):
    """Answers two questions of enumeration without a look at a tensor's values.

    It asks for `tensor.data`, of which it reads the shape; and whether all probabilities are
    positive, so that it may leave out the others, as `expected` does in any case.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == torch.Tensor.data.__get__:
            return args[0].detach()
        if function == torch.Tensor.all and _asked_by(Dice.compute_expectation):
            return True
        return function(*args, **(kwargs or {}))


def expected(probs, costs):
    """The sum of probs * costs where probs are positive; both of one shape."""
    return (probs * torch.where(probs > 0, costs, 0.0)).sum()


def _asked_by(function):
    """Whether the torch function under way was called by this Python function."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


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

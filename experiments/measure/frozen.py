"""`Frozen`: a model that is run as it is, and never trained."""

from copy import deepcopy

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import nn


class Frozen(nn.Module):
    """A model whose parameters SVI neither sees nor differentiates."""

    def __init__(self, model):
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False).eval()

    def forward(self, *args):
        with poutine.block(hide_types=["param"]), _AsTheyAre():
            return self.model(*args)


class _AsTheyAre(Messenger):
    """Answers `param` messages with the module's own value; the store would ask for gradients."""

    def _pyro_param(self, message):
        if len(message["args"]) > 1 and isinstance(message["args"][1], nn.Parameter):
            message["value"] = message["args"][1]
            message["done"] = True

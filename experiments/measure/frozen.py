"""`Frozen`: a model that is run as it is, and never trained."""

from copy import deepcopy

from pyro import poutine
from torch import nn

from guides.inside import AsGiven


class Frozen(nn.Module):
    """A model whose parameters SVI neither sees nor differentiates."""

    def __init__(self, model):
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False).eval()

    def forward(self, *args):
        # The store would ask for gradients.
        with poutine.block(hide_types=["param"]), AsGiven():
            return self.model(*args)

"""MADE: an autoencoder whose masked weights make its outputs conditional probabilities.

One pass of a multilayer perceptron gives every factor of the chain rule, since each path from a
pixel to the outputs leads to later pixels only.  It has no latents: a bound for models that have.

Story:
    x_ni | x_n1 ... x_n(i-1) ~ Bernoulli(sigmoid(y_i)), entries in turn,
    y = b + (V * M_V) h(x),  h(x) = relu(c + (W * M_W) x), of which there may be several
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0: there are no latents.
Differs from the source in: hidden units take their degrees evenly and in turn, where Germain et al.
    draw them; the order is that of the columns, one mask for the whole run, no direct connections.
Raises: ZooError for values other than 0 and 1, or hidden no list of widths.
Source: Germain, Gregor, Murray & Larochelle 2015, MADE: masked autoencoder for distribution
    estimation, eq. 3 and 8-13.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.autoregressive import Autoregressive, by_blocks
from zoo.data import as_dataset
from zoo.nets import check_hidden


class MaskedLinear(nn.Linear):
    """An affine map of which the entries outside `mask` (out, in) are zero."""

    def __init__(self, mask):
        super().__init__(*reversed(mask.shape))
        self.register_buffer("mask", mask)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class MADE(PyroModule):
    """The program; `network` maps rows (n, d) to the logits of every entry given those before."""

    def __init__(self, width, hidden):
        super().__init__(zoo.unique("made"))
        self.network, self.width = _network(width, hidden), width

    def forward(self, x=None, index=None):
        network = self.network
        density = Autoregressive(network, self.width, next(network.parameters()))
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", density, obs=rows)


def _network(width, hidden):
    """The masked perceptron: a unit of degree m depends on the first m entries, output i on i - 1.

    Germain et al. 2015, eq. 12-13.
    """
    degrees, layers = torch.arange(1, width + 1), []
    for size in hidden:
        own = torch.arange(size) * (width - 1) // size + 1
        layers += [MaskedLinear(own[:, None] >= degrees), nn.ReLU()]
        degrees = own
    outputs = torch.arange(1, width + 1)
    return nn.Sequential(*layers, MaskedLinear(outputs[:, None] > degrees))


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d).  Germain et al. 2015, eq. 3 and 8-9."""
    *hidden, (V, b) = [(p.weight * p.mask, p.bias) for p in model.network[::2]]

    def log_p(x):
        h = x
        for W, c in hidden:
            h = (c + h @ W.T).clamp(min=0)
        y = b + h @ V.T
        return (x * nn.functional.logsigmoid(y) + (1 - x) * nn.functional.logsigmoid(-y)).sum(-1)

    return by_blocks(log_p, x)


@zoo.register
def build(data="digits", hidden=(100,)):
    """The problem; data as `zoo.data.as_dataset` takes it, binary; hidden: widths of layers."""
    check_hidden(hidden)
    data = as_dataset(data, binary=True)
    return zoo.Problem(MADE(data.width, tuple(hidden)), data, log_joint)

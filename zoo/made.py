"""MADE: an autoencoder whose masked weights make its outputs conditional probabilities.

One pass of a multilayer perceptron gives every factor of the chain rule, since each path from a
pixel to the outputs leads to later pixels only.  It has no latents: a bound for models that have.

Story:
    x_ni | x_n1 ... x_n(i-1) ~ Bernoulli(sigmoid(y_i)), entries in turn,
    y = b + (V * M_V) h(x) + (A * M_A) x,  h(x) = relu(c + (W * M_W) x), which may be several
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0: there are no latents.
Differs from the source in: hidden units take their degrees evenly and in turn, where Germain et al.
    draw them; the order is that of the columns, one mask for the whole run.  The number of
    parameters is that of the matrices, about half of whose entries the masks hide.
Raises: ZooError for values other than 0 and 1, hidden no list of widths, or direct no bool.
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
from zoo.errors import require_flag
from zoo.nets import check_hidden, tensor_of


class MaskedLinear(nn.Linear):
    """An affine map of which the entries outside `mask` (out, in) are zero."""

    def __init__(self, mask, bias=True):
        super().__init__(*reversed(mask.shape), bias=bias)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class MADE(PyroModule):
    """The program; `network` maps rows (n, d) to the logits of every entry given those before."""

    def __init__(self, width, hidden, direct):
        super().__init__(zoo.unique("made"))
        self.network, self.width = Conditionals(width, hidden, direct), width

    def forward(self, x=None, index=None):
        network = self.network
        density = Autoregressive(network, self.width, tensor_of(network))
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", density, obs=rows)


class Conditionals(nn.Module):
    """The masked perceptron: a unit of degree m depends on the first m entries, output i on i - 1.

    `direct`: the affine map from entries to outputs past all hidden units, or None.
    Germain et al. 2015, eq. 12-13; direct connections are their option too.
    """

    def __init__(self, width, hidden, direct):
        super().__init__()
        entries, layers = torch.arange(1, width + 1), []
        degrees = entries
        for size in hidden:
            own = torch.arange(size) * (width - 1) // size + 1
            layers += [MaskedLinear(own[:, None] >= degrees), nn.ReLU()]
            degrees = own
        self.layers = nn.Sequential(*layers, MaskedLinear(entries[:, None] > degrees))
        self.direct = MaskedLinear(entries[:, None] > entries, bias=False) if direct else None

    def forward(self, x):
        """Rows (m, d) to logits (m, d)."""
        y = self.layers(x)
        return y if self.direct is None else y + self.direct(x)


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d).  Germain et al. 2015, eq. 3 and 8-9."""
    network = model.network
    *hidden, (V, b) = [(p.weight * p.mask, p.bias) for p in network.layers[::2]]
    A = x.new_zeros(2 * x.shape[-1:]) if network.direct is None else network.direct.weight.tril(-1)

    def log_p(x):
        h = x
        for W, c in hidden:
            h = (c + h @ W.T).clamp(min=0)
        y = b + h @ V.T + x @ A.T
        return (x * nn.functional.logsigmoid(y) + (1 - x) * nn.functional.logsigmoid(-y)).sum(-1)

    return by_blocks(log_p, x)


@zoo.register
def build(data="digits", hidden=(100,), direct=True):
    """The problem; data as `zoo.data.as_dataset` takes it, binary.

    hidden: widths of layers; direct: whether entries are also joined to the outputs past them.
    """
    check_hidden(hidden)
    require_flag(direct=direct)
    data = as_dataset(data, binary=True)
    # Without hidden units the affine map to the outputs is the direct one.
    return zoo.Problem(MADE(data.width, tuple(hidden), direct and len(hidden) > 0), data, log_joint)

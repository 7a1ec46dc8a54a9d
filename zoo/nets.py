"""The small networks that models and guides share."""

from itertools import chain

import torch
from torch import nn

from zoo.errors import require


def check_hidden(hidden):
    """Refuse anything but a list of layer widths of at least 1."""
    good = isinstance(hidden, list | tuple) and all(type(w) is int and w >= 1 for w in hidden)
    require(
        good, f"hidden must list layer widths of at least 1, such as [100, 100], got {hidden!r}"
    )


def mlp(width_in, hidden, width_out, activation=nn.Tanh):
    """A multilayer perceptron: one hidden layer per entry of `hidden`, linear output.

    Maps (..., width_in) to (..., width_out); an empty `hidden` gives an affine map.
    """
    layers = []
    for width in hidden:
        layers += [nn.Linear(width_in, width), activation()]
        width_in = width
    return nn.Sequential(*layers, nn.Linear(width_in, width_out))


class Convolutions(nn.Module):
    """Rows (..., height * width) of images to (..., width_out).

    Two layers of 5 x 5 kernels, each of which halves the image, and an affine map of what is left.
    """

    def __init__(self, image_shape, width_out, channels=(16, 32)):
        super().__init__()
        layers, maps, left = [], 1, list(image_shape)
        for count in channels:
            layers += [nn.Conv2d(maps, count, 5, stride=2, padding=2), nn.ReLU()]
            maps, left = count, [(side + 1) // 2 for side in left]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(maps * left[0] * left[1], width_out)
        )
        self.image_shape = tuple(image_shape)

    def forward(self, rows):
        images = rows.reshape(-1, 1, *self.image_shape)
        return self.layers(images).reshape(*rows.shape[:-1], -1)


class MultiInput(nn.Module):
    """`mlp` of several inputs side by side, whose batches broadcast.

    The first layer is a sum with a term for each input, so that none is repeated to the size of
    another: many draws of a latent share the row that they belong to.
    """

    def __init__(self, widths_in, hidden, width_out):
        super().__init__()
        first, *rest = (*hidden, width_out)
        self.parts = nn.ModuleList(
            nn.Linear(width, first, bias=place == 0) for place, width in enumerate(widths_in)
        )
        self.rest = nn.Sequential(nn.Tanh(), *mlp(first, rest[:-1], width_out)) if rest else None

    def forward(self, *inputs):
        total = sum(part(x) for part, x in zip(self.parts, inputs, strict=True))
        return total if self.rest is None else self.rest(total)


def one_hot(value, count, dtype):
    """Whole numbers (...) below `count` as (..., count), 1 at their place and 0 elsewhere."""
    return (value[..., None] == torch.arange(count, device=value.device)).to(dtype)


def tensor_of(module):
    """A module's first parameter, or buffer where it has no parameter: for its type and device."""
    return next(chain(module.parameters(), module.buffers()))

"""The small networks that models and guides share."""

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

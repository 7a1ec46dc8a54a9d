"""The small networks that models and guides share."""

from torch import nn


def mlp(width_in, hidden, width_out, activation=nn.Tanh):
    """A multilayer perceptron: one hidden layer per entry of `hidden`, linear output.

    Maps (..., width_in) to (..., width_out); an empty `hidden` gives an affine map.
    """
    layers = []
    for width in hidden:
        layers += [nn.Linear(width_in, width), activation()]
        width_in = width
    return nn.Sequential(*layers, nn.Linear(width_in, width_out))

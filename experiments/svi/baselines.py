"""The score function with baselines that earlier steps have made.

For a datum with log weight l = log p(x, z) - log q(z given x) and baseline B, which does not
depend on the draw z,

    gradient = d log p + (l - B) d log q(z given x),   d: the derivative in all parameters,

is unbiased for the gradient of the bound: the mean of d log q is zero.  Continuous latents with a
path keep it: there the term - d log q takes the score's place.

running_mean  B = c, one number a run: an exponentially weighted mean of l over earlier steps
nvil          B = C(x) + c: beside it a network of the datum, trained on (l - C(x) - c)^2

Bias: none; both come from earlier steps' draws alone.  Cost: one evaluation of the model a draw.
The division of the signal by its running standard deviation, which the source adds to nvil,
rescales the gradient and is left out.
Source: Mnih & Gregor 2014, Neural variational inference and learning in belief networks, eq. 7-9
    and algorithm 1.
"""

import torch
from torch import nn

from experiments.svi.per_datum import PerDatum
from guides.sources import Encoder

DECAY = 0.9
"""Of the weight of a step's mean signal, at every later step."""
HIDDEN = (100,)
"""Widths of the network's layers."""


class Running(nn.Module):
    """An exponentially weighted mean of numbers, whose weights sum to 1; at first it is 0.

    Its buffers change at every step: see `experiments.svi.stacked`.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self):
        """The mean, ()."""
        return self.total / self.weight.clamp(min=1 - DECAY)

    def after(self, number):
        """{buffer: its value} once `number`, (), is taken in."""
        total = DECAY * self.total + (1 - DECAY) * number
        return {"total": total, "weight": DECAY * self.weight + (1 - DECAY)}


class Baseline(nn.Module):
    """What nvil learns: a network of the datum, and the mean of what it leaves."""

    def __init__(self, train):
        super().__init__()
        self.network = Encoder(train, HIDDEN, 1)
        self.running = Running()

    def forward(self, rows):
        """Nats a datum: (b, d) -> (b,)."""
        return self.network(rows, None)[..., 0]


class RunningMean(PerDatum):
    """own: a `Running`."""

    def gain(self, draws):
        signal = draws.log_weight.detach()
        self.updates = self.own.after(signal.mean())
        return _gain(draws, signal - self.own()), 0.0


class Nvil(PerDatum):
    """own: a `Baseline`."""

    def gain(self, draws):
        running, baseline = self.own.running, self.own(self.data)
        rest = draws.log_weight.detach() - baseline
        centered = rest - running()
        found = running.after(rest.detach().mean())
        self.updates = {f"running.{name}": value for name, value in found.items()}
        return _gain(draws, centered.detach()), centered.square().mean()


def _gain(draws, signal):
    """Every datum's gain, (b,), whose scores are weighed by the signal (P, b)."""
    return (draws.log_p - draws.path + signal * draws.score).mean(0)

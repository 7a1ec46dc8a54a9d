"""RELAX: the score function less a learned control variate, whose own gradient has a path.

A switch of logit l is drawn as b = 1[z > 0], z = l + noise.  For any function c of z,

    gradient in l = (f(b) - c(z')) d log q(b) + d c(z) - d c(z'),

where f = log p(x, b) - log q(b) and z', given b, is drawn anew from what z may have been, as a
function of l and of noise of its own: z' = softplus(t + softplus(l)) for b = 1, and
- softplus(t + softplus(-l)) for b = 0.  Here t is coupled to the first noise so that z' = z, whose
derivatives differ all the same (REBAR, appendix C): then

    gradient in l_i = (f(b) - c(z)) (b_i - sigmoid(l_i))
                      + dc/dz_i (1 - (1 - exp -|z_i|) q(b_i)),

and c(z) = scale f(s) + network(x, s), s = sigmoid(z / temperature).  The control variate's scale,
temperature and network are trained on the square of this gradient, summed over a datum's switches:
its mean is the variance but for a constant, so that the derivative of one draw's square is
unbiased for that of the variance.
Bias: none, whatever c is.  Cost: an evaluation of the model at b and one at s a draw, and three
passes back.
Source: Grathwohl, Choi, Wu, Roeder & Duvenaud 2018, Backpropagation through the void, eq. 7-8 and
    appendix; Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein 2017, REBAR.
"""

import math

import torch
from pyro import poutine
from torch import nn

from experiments.svi.bernoulli import Drawn, logistic
from experiments.svi.per_datum import PerDatum
from guides.sources import Encoder

HIDDEN = (50,)
"""Widths of the network's layers."""


class ControlVariate(nn.Module):
    """c(z), nats a datum; it begins as REBAR's, the relaxed bound alone.

    train: (n, d), by which the network's input is centered; size: switches a datum.
    """

    def __init__(self, train, size, temperature):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.scale = nn.Parameter(torch.ones(()))
        self.network = Encoder(train, HIDDEN, 1, beside=(size,))
        last = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, z, rows, bound):
        """z (P, b, k), rows (b, d), bound: relaxed switches (P, b, k) -> (P, b); (P, b)."""
        relaxed = (z / self.log_temperature.exp()).sigmoid()
        return self.scale * bound(relaxed) + self.network(rows, None, relaxed)[..., 0]


class Relax(PerDatum):
    """own: a `ControlVariate`."""

    def gain(self, draws):
        logits, z = draws.entries(self.logits), draws.entries(self.z)
        own = dict(self.own.named_parameters())
        f, bound = draws.log_weight.detach(), self._relaxed_bound(draws)

        def square(own):
            """Mean over draws and data of the squared gradient; the gradient itself."""
            slope = slope_in_logits(
                lambda z: torch.func.functional_call(self.own, own, (z, self.data, bound)),
                z, logits.detach(), f,
            )  # fmt: skip
            return slope.square().sum(-1).mean(), slope

        changes, slope = torch.func.grad(square, has_aux=True)(own)
        own_loss = sum((changes[name].detach() * own[name]).sum() for name in own)
        return draws.log_p.mean(0) + (slope.detach() * logits).sum(-1).mean(0), own_loss

    def _relaxed_bound(self, draws):
        """log p(x, s) - log q(s) as a function of relaxed switches s: (P, b, k) -> (P, b)."""
        site = draws.guide_trace.nodes[self.name]

        def bound(relaxed):
            value = relaxed.reshape(site["value"].shape)
            with poutine.block(hide_types=["sample"]):  # parameters are for the handlers around
                conditioned = poutine.condition(self.model, data={self.name: value})
                trace = poutine.trace(conditioned).get_trace(*self.args)
            trace.compute_log_prob()
            return draws.density(trace)[0] - site["fn"].log_prob(value).reshape(relaxed.shape[:2])

        return bound

    def _get_trace(self, model, guide, args, kwargs):
        self.model, self.args = model, args
        drawn = Drawn(self._draw)
        pair = super()._get_trace(model, drawn(guide), args, kwargs)
        [(self.name, self.logits)] = drawn.logits.items()
        return pair

    def _draw(self, logits):
        with torch.no_grad():
            self.z = logits + logistic(logits)
            return (self.z > 0).to(logits.dtype)


def slope_in_logits(control, z, logits, f):
    """The gradient in the logits, (P, b, k); z, logits (P, b, k), f (P, b).

    control: z -> (P, b), nats, of which a row depends on the same row of z alone.
    """

    def total(z):
        c = control(z)
        return c.sum(), c

    derivative, c = torch.func.grad(total, has_aux=True)(z)
    b = (z > 0).to(z.dtype)
    probability = torch.where(z > 0, logits, -logits).sigmoid()
    coupled = 1 + (-z.abs()).expm1() * probability
    return (f - c)[..., None] * (b - logits.sigmoid()) + derivative * coupled

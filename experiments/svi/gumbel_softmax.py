"""Gumbel-softmax, also called concrete: gradients through switches that are relaxed.

A switch of logit l is replaced by s = sigmoid((l + noise) / temperature), which has a path, and

    gradient = d log p(x, s) - d_s log q(s),

where log p and log q are those of the discrete switches as they extend to numbers between 0 and 1
(linearly in s, for the densities of the switches themselves), and d_s is the derivative through s
alone: what is left out, s - sigmoid(l), has mean zero for the switches themselves (Roeder, Wu &
Duvenaud 2017) and is much of the variance, and of the bias, for relaxed ones.  The relaxed value is
fed to the model and the guide (soft, not straight-through).
Bias: BIASED, in the gradients of guide and model alike, the more the higher the temperature; the
lower, the larger the variance.  The loss that is reported is that of the ELBO, from draws of the
switches themselves.  Cost: two evaluations of the model a draw, one of them without gradient.
Source: Jang, Gu & Poole 2017, Categorical reparameterization with Gumbel-softmax, section 2.2;
    Maddison, Mnih & Teh 2017, The concrete distribution, section 3.
"""

import torch

from experiments.svi.bernoulli import Drawn, logistic
from experiments.svi.per_datum import Draws, PerDatum


class GumbelSoftmax(PerDatum):
    """temperature: that of the relaxed switches."""

    def gain(self, draws):
        direct = 0.0  # its gradient is that of log q(s) at a fixed s
        for name, logits in self.drawn.logits.items():
            logits, relaxed = map(draws.entries, (logits, draws.guide_trace.nodes[name]["value"]))
            off = relaxed.detach() - logits.detach().sigmoid()
            direct = direct + (off * logits).sum(-1)
        return (draws.log_weight + direct).mean(0), 0.0

    def bound(self, draws):
        return super().bound(Draws(*self.hard, self.plate, self.num_particles))

    def _get_trace(self, model, guide, args, kwargs):
        with torch.no_grad():
            self.hard = super()._get_trace(model, guide, args, kwargs)
        self.drawn = Drawn(self._relaxed)
        return super()._get_trace(model, self.drawn(guide), args, kwargs)

    def _relaxed(self, logits):
        return ((logits + logistic(logits)) / self.temperature).sigmoid()

"""DisARM: pairs of antithetic draws of switches, from one uniform number a switch.

Of one noise, logistic(0, 1), come two draws of a switch of logit l: b = 1[l + noise > 0] and
b' = 1[l - noise > 0].  With f = log p(x, b) - log q(b) of all switches of a datum,

    gradient in l_i = (f(b) - f(b')) / 2  (b_i - b'_i)  sigmoid(|l_i|),

which is the mean of the ARM estimator given the pair; (b_i - b'_i) is the sign (-1)^b'_i where
the two differ.  It is carried on to the guide's parameters.  The model's gradient is the mean of
d log p over both draws.
Bias: none.  Cost: one evaluation of the model a draw, two a pair.
Source: Dong, Mnih & Tucker 2020, DisARM: an antithetic gradient estimator for binary latent
    variables, eq. 8; Yin, Ho, Yan, Qian & Zhou 2020, Probabilistic best subset selection via
    gradient-based optimization (the same estimator, as U2G); Yin & Zhou 2019, ARM.
"""

import torch

from experiments.svi.bernoulli import Drawn, logistic
from experiments.svi.per_datum import PerDatum


class Disarm(PerDatum):
    """num_particles: even, two a pair."""

    def gain(self, draws):
        [(name, logits)] = self.drawn.logits.items()
        value = draws.guide_trace.nodes[name]["value"]
        first, second = draws.entries(value).chunk(2)
        difference = draws.log_weight.detach().chunk(2)
        logits = draws.entries(logits).chunk(2)[0]
        half = 0.5 * (difference[0] - difference[1])[..., None]
        slope = half * (first - second) * logits.detach().abs().sigmoid()
        return draws.log_p.mean(0) + (slope * logits).sum(-1).mean(0), 0.0

    def _get_trace(self, model, guide, args, kwargs):
        self.drawn = Drawn(antithetic)
        return super()._get_trace(model, self.drawn(guide), args, kwargs)


def antithetic(logits):
    """Switches (2 P, ...) whose second half mirrors the first; logits alike."""
    with torch.no_grad():
        first, second = logits.chunk(2)
        noise = logistic(first)
        return torch.cat([first + noise > 0, second - noise > 0]).to(logits.dtype)

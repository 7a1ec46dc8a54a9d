"""Reweighted wake-sleep: the guide is drawn to the posterior by weighted draws of its own.

For a datum with log weights l_k = log p(x, z_k) - log q(z_k given x), no path through any z_k,

    gradient = sum_k w_k d log p(x, z_k) + (w_k - 1 / K) d log q(z_k given x),

with w = softmax(l) over the draws: the wake phases of model and guide.  The 1 / K is not in the
source; its term has mean zero, and it takes away the noise where all weights are alike.  With
infinitely many draws it is the gradient of log p(x) in the model's parameters and of
- KL(p(z given x) | q) in the guide's: not that of the ELBO.
Bias: biased for any finite K, since the weights are normalized; the bias falls as 1 / K.  The
weights are normalized for each datum; Pyro's ReweightedWakeSleep normalizes them over the whole
plate, so that the draw best for all data together counts for each.
Since no path is asked for, latents may be discrete or continuous.
The loss that is reported is that of the ELBO.  Cost: one evaluation of the model a draw.
Source: Bornschein & Bengio 2015, Reweighted wake-sleep, eq. 3 and 6.
"""

from pyro.poutine.messenger import Messenger

from experiments.svi.per_datum import PerDatum


class WakeSleep(PerDatum):
    """num_particles: K, at least 2."""

    def gain(self, draws):
        share = draws.log_weight.detach().softmax(0)
        return (share * draws.log_p + (share - 1 / len(share)) * draws.log_q).sum(0), 0.0

    def _get_trace(self, model, guide, args, kwargs):
        with Pathless():  # outermost: there the plates have widened every distribution
            return super()._get_trace(model, guide, args, kwargs)


class Pathless(Messenger):
    """Cuts every draw off from its path where it is made, so that none enters a later density."""

    def _pyro_sample(self, message):
        if message["value"] is None:
            drawn = message["fn"](*message["args"], **message["kwargs"])
            message["value"], message["done"] = drawn.detach(), True

"""VIMCO: the importance-weighted bound of K draws, each with a baseline from the others.

For a datum with log weights l_k = log p(x, z_k) - log q(z_k given x) the objective is

    L = E log 1/K sum_k exp l_k,

and with L_k the same where the mean of the other log weights stands for l_k,

    gradient = sum_k (L - L_k + 1 / K) d log q(z_k) + sum_k w_k d l_k,   w = softmax(l),

is unbiased for that of the objective, which for K > 1 is above the ELBO: L_k does not depend on
z_k.  The 1 / K is not in the source; its term has mean zero, and where all weights are alike it
takes away the term of - log q in d l_k, which is then mere noise.
The loss that is reported is that of the ELBO, the mean of the l_k.  Continuous latents with
a path have no score.  Cost: one evaluation of the model a draw, K numbers a draw beside it.
Source: Mnih & Rezende 2016, Variational inference for Monte Carlo objectives, eq. 10-12.
"""

import torch

from experiments.svi.importance import log_mean
from experiments.svi.per_datum import PerDatum


class Vimco(PerDatum):
    """num_particles: K, at least 2."""

    def gain(self, draws):
        log_weight = draws.log_weight
        bound = log_mean(log_weight)
        signal = (bound - log_mean(with_geometric_mean(log_weight))).detach()
        return bound + ((signal + 1 / self.num_particles) * draws.score).sum(0), 0.0


def with_geometric_mean(log_weight):
    """Log weights (K, b) of which the k-th is the mean of the others: (K, k, b)."""
    own = torch.eye(len(log_weight), dtype=torch.bool, device=log_weight.device)[..., None]
    each = log_weight[:, None].expand(-1, len(log_weight), -1)
    # Set to zero before the sum: one weight of zero would make a difference of infinities.
    others = torch.where(own, 0.0, each).sum(0, keepdim=True) / (len(log_weight) - 1)
    return torch.where(own, others, each)

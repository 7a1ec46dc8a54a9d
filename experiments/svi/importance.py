"""Bounds that weigh several draws of a datum: IWAE, Renyi's, and doubly reparametrized gradients.

A datum n of a minibatch of b among N has the log weights w_nk = log p(x_n, z_nk) - log q(z_nk) of
its own particles, unscaled.  A bound is F(w_n1, ..., w_nK), summed over n and only then scaled by
N / b: inside of F the factor would make another function of it, and no bound.  What stands outside
of the plate, in a model without a latent there, is added as it is.
"""

import math
from functools import partial

from experiments.svi.paths import Held, at, cut, gated, total
from zoo.problem import sample_sites


def weighted(bound, plate):
    """The losses of a bound: (K, b) log weights -> (b,) nats, which autograd differentiates."""
    return partial(_losses, bound, plate)


def log_mean(log_weights):
    """log 1/K sum_k exp w_k: (K, ..., b) -> (..., b).

    Source: Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders, eq. 8.
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def renyi(alpha, log_weights):
    """1 / (1 - alpha) log 1/K sum_k exp((1 - alpha) w_k): (K, b) -> (b,).

    Source: Li & Turner 2016, Renyi divergence variational inference, section 4.1.
    """
    return log_mean((1 - alpha) * log_weights) / (1 - alpha)


def _losses(bound, plate, elbo, model, guide, args):
    """(loss, surrogate): the plain loss in nats, and what has the bound's gradient."""
    [pair] = elbo._get_traces(model, guide, args, {})
    log_weights, scale, shared = _log_weights(pair, plate, elbo.num_particles)
    return _loss(pair, elbo.num_particles), -(scale * bound(log_weights).sum() + shared)


def doubly_reparametrized(plate, elbo, model, guide, args):
    """(loss, surrogate) of IWAE whose guide's gradient has no score function in it.

    With normalized weights v_k it is sum_k v_k^2 (d w_k / d z_k) (d z_k / d parameters) for the
    guide, sum_k v_k d w_k / d parameters for the model: the programs run again at the same draws,
    v_k multiplies all, and a draw's path once more.  A draw is all latents of a particle together,
    so that a hierarchy of them is right as it is.
    Source: Tucker, Lawson, Gu & Maddison 2019, Doubly reparameterized gradient estimators for Monte
        Carlo objectives, section 3; Bauer & Mnih 2021, Generalized doubly-reparameterized gradient
        estimators, for hierarchies.
    """
    [pair] = elbo._get_traces(model, guide, args, {})
    weights = _log_weights(pair, plate, elbo.num_particles)[0].detach().softmax(0)
    held = Held(gated(pair[1], weights))(guide)
    [again] = elbo._get_traces(model, held, args, {})
    log_weights, scale, shared = _log_weights(again, plate, elbo.num_particles)
    explicit = by_datum(at(elbo, guide, args, cut(pair[1])), plate, elbo.num_particles)[0]
    gain = scale * (weights * (log_weights + explicit)).sum() + shared
    return _loss(pair, elbo.num_particles), -gain


def _log_weights(pair, plate, num_particles):
    """(w (num_particles, b), N / b, mean of what is outside of the plate) of a pair of traces."""
    log_p, scale, shared = by_datum(pair[0], plate, num_particles)
    return log_p - by_datum(pair[1], plate, num_particles)[0], scale, shared


def by_datum(trace, plate, num_particles):
    """(unscaled log densities (num_particles, b), N / b, mean of what is outside of the plate)."""
    inside, outside, scale = 0.0, 0.0, 1.0
    for site in sample_sites(trace):
        frames = [frame for frame in site["cond_indep_stack"] if frame.name == plate]
        if frames:
            scale = (frames[0].full_size or frames[0].size) / frames[0].size
            inside = inside + site["log_prob"]
        else:
            outside = outside + site["log_prob_sum"] / num_particles
    return inside.reshape(num_particles, -1) / scale, scale, outside


def _loss(pair, num_particles):
    """The plain loss of a pair of traces, nats."""
    return ((total(pair[1]) - total(pair[0])) / num_particles).detach()

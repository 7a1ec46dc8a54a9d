"""Gradients along the path of the draws alone: sticking the landing.

A draw z = g(noise; parameters) stands in log p(x, z) - log q(z; parameters) twice: by its path, and
by the parameters of log q, whose gradient at a fixed z, the score, is zero on average and noise.
Here log q is computed a second time with the guide held at the same draws, cut off from their
path: what is left of the difference is the path's.  Nothing is asked of how the guide keeps its
parameters, so that tables, parameters shared with the model and functions of `pyro.param` are all
right, as are densities that a distribution remembers for a value: the cut draw is another tensor.
"""

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger

from zoo.problem import base_distribution, sample_sites


def sticking_the_landing(elbo, model, guide, args):
    """(loss, surrogate) of the ELBO by the path alone; the loss is the plain one, nats.

    Source: Roeder, Wu & Duvenaud 2017, Sticking the landing: simple, lower-variance gradient
        estimators for variational inference, algorithm 2.
    """
    [(model_trace, guide_trace)] = elbo._get_traces(model, guide, args, {})
    explicit = total(at(elbo, guide, args, cut(guide_trace)))
    loss = total(guide_trace) - total(model_trace)
    return loss.detach() / elbo.num_particles, (loss - explicit) / elbo.num_particles


def drawn(guide_trace):
    """The sites at which a guide draws, not those that are functions of other draws (Deltas).

    Such a function is computed again: held, its value would have to be the same to the last bit.
    """
    sites = [site for site in sample_sites(guide_trace) if not site["is_observed"]]
    return [site for site in sites if not isinstance(base_distribution(site["fn"]), Delta)]


def cut(guide_trace):
    """{site: draw without its path}."""
    return {site["name"]: site["value"].detach() for site in drawn(guide_trace)}


def gated(guide_trace, weights):
    """{site: draw whose path's gradient is multiplied by the weight of its particle and datum}.

    weights: (num_particles, b); values are as they were.
    """
    found = {}
    for site in drawn(guide_trace):
        value, fixed = site["value"], site["value"].detach()
        weight = weights.reshape(*site["fn"].batch_shape, *(1 for _ in site["fn"].event_shape))
        found[site["name"]] = fixed + weight * (value - fixed)
    return found


def at(elbo, guide, args, values):
    """A trace, with log densities, of a guide whose draws are held at values {site: tensor}."""
    held = elbo._vectorized_num_particles(Held(values)(guide))
    trace = poutine.trace(held).get_trace(*args)
    trace.compute_log_prob()
    return trace


def total(trace):
    """The log density of all sites and particles, minibatches scaled to all data, nats."""
    return sum((site["log_prob_sum"] for site in sample_sites(trace)), torch.zeros(()))


class Held(Messenger):
    """Holds sample sites at given values."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, message):
        if message["name"] in self.values:
            message["value"], message["done"] = self.values[message["name"]], True

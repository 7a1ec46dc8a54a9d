"""What guides need that run the model themselves: its density at given latents."""

import warnings
from copy import deepcopy

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from zoo.problem import sample_sites


class AsGiven(Messenger):
    """Lets modules read their parameters as they stand, without Pyro's store.

    Inside of a derivative of torch.func nothing may enter the store.
    """

    def _pyro_param(self, message):
        given = message["args"][1:2]
        if not message["done"] and given and isinstance(given[0], torch.Tensor):
            message["value"], message["done"] = given[0], True


def detached(module):
    """A copy of a module that shares its tensors, through which no gradient passes."""
    tensors = [*module.parameters(), *module.buffers()]
    # Pyro takes a note off the parameters of a module that is copied, and optimizers want it.
    notes = [(t, t.unconstrained) for t in tensors if hasattr(t, "unconstrained")]
    try:
        return deepcopy(module, {id(tensor): tensor.detach() for tensor in tensors})
    finally:
        for tensor, note in notes:
            tensor.unconstrained = note


def log_joint(model, x, values, total=False, prior=False):
    """log p(x, z) of every datum under the model, unscaled: (..., n) nats; total: of all, ().

    x: (n, d) rows; values: {latent: (..., n, *event_shape)}; prior: log p(z) alone.  The model's
    sites are none of the program that calls.
    """
    # Validation would warn of NaN, and Pyro of a network that is not trained.
    quiet = pyro.validation_enabled(False), warnings.catch_warnings()
    with poutine.block(), AsGiven(), quiet[0], quiet[1]:
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
        trace.compute_log_prob()
    sites = [site for site in sample_sites(trace) if not prior or site["name"] in values]
    terms = [site["unscaled_log_prob"] for site in sites]
    return sum(term.sum() for term in terms) if total else sum(terms)

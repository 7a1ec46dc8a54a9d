"""Checks of a model/guide pair before it is fitted."""

import pyro
import torch
from pyro import poutine

from zoo.errors import explained, require
from zoo.problem import sample_sites


def check_sites(problem, guide):
    """Refuse a guide whose latent sites are not the model's, in name, event shape and plate.

    Pyro warns of such a pair and goes on; the fit then means nothing.
    """
    found = _latent_sites(guide, problem.data.train)
    wanted = {latent.name: latent for latent in problem.latents}
    for name in wanted:
        require(name in found, f"the guide misses latent {name!r}; it has {_list(found)}")
    for name, (event_shape, plates) in found.items():
        require(
            name in wanted,
            f"the guide has latent {name!r}, unknown to the model; the model has {_list(wanted)}",
        )
        latent = wanted[name]
        require(
            event_shape == latent.event_shape,
            f"latent {name!r} has event shape {event_shape} in the guide, "
            f"{latent.event_shape} in the model",
        )
        require(
            plates == latent.plates,
            f"latent {name!r} stands in plates {_list(plates)} in the guide, "
            f"{_list(latent.plates)} in the model",
        )


def _latent_sites(guide, x):
    store = pyro.get_param_store().scope()
    wrong = explained("the guide does not run on the training data")
    with wrong, torch.random.fork_rng([]), store, torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
    return {
        site["name"]: (tuple(site["fn"].event_shape), _plates(site))
        for site in sample_sites(trace)
        if not site["infer"].get("is_auxiliary")
    }


def _plates(site):
    return tuple(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)


def _list(names):
    return ", ".join(names) or "none"

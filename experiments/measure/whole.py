"""Pyro programs run as they were fitted, but on whole plates and without scales.

The surroundings of every draw: a random stream of its own, the parameters of one chain, plates
that take every index, and densities that no minibatch or `poutine.scale` has multiplied.
"""

import warnings
from contextlib import contextmanager

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import nn

from zoo.errors import require
from zoo.program import Filled


@contextmanager
def surroundings(seed, state, device):
    """A random stream and a parameter store of their own, without gradients and validation."""
    gpus = [device] if device.type == "cuda" else []
    networks = {n: nn.Parameter(v.detach()) for n, v in state["params"].items() if "$$$" in n}
    store, quiet = pyro.get_param_store().scope(state), pyro.validation_enabled(False)
    with torch.random.fork_rng(gpus), store, quiet, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")
        torch.manual_seed(seed)
        with Filled(networks.get), Unscaled(), whole_plates() as indices:
            yield indices


@contextmanager
def whole_plates():
    """Plates take every index, unless their program gives them `subsample=`.

    Yields {plate: its indices}.  A guide's plate takes the indices that the model gave to its
    own, also where the guide would draw a minibatch (an autoguide does: pyro #3468).
    """
    original, given, indices = SubsampleMessenger._subsample, {}, {}

    def whole(name, size=None, subsample_size=None, subsample=None, use_cuda=None, device=None):
        if subsample is not None:
            given[name] = subsample
        subsample = given.get(name)
        found = original(name, size, None, subsample, use_cuda, device)
        indices[name] = found[2]
        return found

    SubsampleMessenger._subsample = staticmethod(whole)
    try:
        yield indices
    finally:
        SubsampleMessenger._subsample = staticmethod(original)


class Unscaled(Messenger):
    """Undoes the scale of every site; it has to be the outermost handler."""

    def _pyro_sample(self, message):
        message["scale"] = 1.0


def store_states(programs, params):
    """The parameter store's state for every chain.

    programs: a (model, guide) a chain.  params: None, a state as
    `pyro.get_param_store().get_state()` gives, or one a chain.  Where it is None, modules answer
    with their own values, and functions with those of the store as it stands.
    Raises ZooError where a lone module's values are not those that the store has for it.
    """
    if params is None:
        return [_own_state(pair, check=len(programs) == 1) for pair in programs]
    params = list(params) if isinstance(params, list | tuple) else [params] * len(programs)
    for state in params:
        good = isinstance(state, dict) and (not state or {"params", "constraints"} <= set(state))
        require(good, "params are states of Pyro's store: pyro.get_param_store().get_state()")
    return [state or {"params": {}, "constraints": {}} for state in params]


def _own_state(pair, check):
    store = pyro.get_param_store()
    names = {}
    for program in pair:
        if isinstance(program, PyroModule):
            prefix = f"{program._pyro_name}." if program._pyro_name else ""
            names |= {f"{prefix}{n}": v for n, v in program.named_pyro_params()}
    for name, value in names.items():
        if check and name in store:
            same = store[name].shape == value.shape and torch.equal(store[name], value)
            require(
                same,
                f"parameter {name!r} is another in Pyro's store than in the module, as two "
                "modules of one name were fitted: params=pyro.get_param_store().get_state() "
                "takes the store's, params={} the module's own",
            )
    state = store.get_state()
    return {
        kind: {name: value for name, value in held.items() if name not in names}
        for kind, held in state.items()
    }

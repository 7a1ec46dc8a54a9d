"""Pyro programs run as they were fitted, but on whole plates and without scales.

The surroundings of every draw: a random stream of its own, the parameters of one chain, plates
that take every index, and densities that no minibatch or `poutine.scale` has multiplied.
"""

import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import nn

from zoo.errors import require
from zoo.program import Filled


def empty_state():
    """The state of a parameter store without parameters."""
    return {"params": {}, "constraints": {}}


def _copied(state):
    """A state of its own, as a run adds the parameters that it has not."""
    return {kind: dict(held) for kind, held in state.items()}


@contextmanager
def surroundings(seed, state, device):
    """A random stream and a parameter store of their own, without gradients and validation."""
    gpus = [device] if device.type == "cuda" else []
    networks = {n: nn.Parameter(v.detach()) for n, v in state["params"].items() if "$$$" in n}
    store, quiet = pyro.get_param_store().scope(_copied(state)), pyro.validation_enabled(False)
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


def fitted_pairs(pairs, params):
    """The pairs, one a chain, each with its state of the parameter store.

    params: None, a state as `pyro.get_param_store().get_state()` gives, or one a chain.  Where it
    is None, modules answer with their own values, and functions with those of the store as it
    stands.  A state `{}` is that of no fit: what no module holds has its initial value.
    Raises ZooError where a lone module's values are not those that the store has for it, a guide
    or a function's parameter was never fitted, or several fits share the store's parameters.
    """
    if params is None:
        states = [_own_state(pair, check=len(pairs) == 1) for pair in pairs]
        for pair in pairs:
            _check_set_up(pair)
    else:
        states = list(params) if isinstance(params, list | tuple) else [params] * len(pairs)
    for state in states:
        good = isinstance(state, dict) and (not state or {"params", "constraints"} <= set(state))
        require(good, "params are states of Pyro's store: pyro.get_param_store().get_state()")
    for pair, state in zip(pairs, states, strict=True):
        if state:
            _check_params(_parameters(replace(pair, state=state)), state, params, len(pairs))
    return [replace(p, state=s or empty_state()) for p, s in zip(pairs, states, strict=True)]


def _parameters(pair):
    """{name: whether a module holds its value} of the parameters that a run of a pair asks for.

    `pyro.module` hands on a network's own, and a PyroModule's have no initial value.
    """
    everywhere = surroundings(0, pair.state, pair.device)
    with everywhere, poutine.trace() as seen, suppress(Exception):  # explained by the draws
        drawn = poutine.trace(pair.call(pair.guide)).get_trace()
        pair.call(poutine.replay(pair.model, trace=drawn))()
    return {
        site["name"]: len(site["args"]) < 2 or isinstance(site["args"][1], torch.nn.Parameter)
        for site in seen.trace.nodes.values()
        if site["type"] == "param"
    }


def _check_params(parameters, state, params, num_fits):
    for name, held in parameters.items():
        stands = name in state["params"]
        require(
            held or stands,
            f"parameter {name!r} is not in Pyro's store: fit first, or give "
            "params=pyro.get_param_store().get_state() of the fit; params={} takes initial values",
        )
        require(
            not stands or params is not None or num_fits == 1,
            f"parameter {name!r} of several fits stands once in Pyro's store: they need "
            "params=[state, ...], a pyro.get_param_store().get_state() after each fit",
        )


def _check_set_up(pair):
    for program in (pair.model, pair.guide):
        lazy = isinstance(program, AutoGuide) and not isinstance(program, AutoCallable)
        require(
            not lazy or program.prototype_trace is not None,
            f"the guide, {type(program).__name__}, has no parameters yet: fit it first",
        )


def _own_state(pair, check):
    store = pyro.get_param_store()
    names = {}
    for program in (pair.model, pair.guide):
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

"""`Program`: a plain Pyro function as a module that owns its parameters."""

import inspect
import weakref

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import transform_to


class Program(nn.Module):
    """A model or guide function with its `pyro.param` and `pyro.module` values held here.

    Copies of a Program share nothing, and none of its values stays in Pyro's global store.
    Parameters are found by running the function once; `reset_parameters` runs it again, so that
    initial values which are drawn at random differ between seeds.
    """

    def __init__(self, function, *args):
        super().__init__()
        self.function = function
        self.args = args
        self.constraints = {}
        self.values = nn.ParameterDict()
        self.reset_parameters()

    def reset_parameters(self):
        """Set every parameter to its initial value, drawn afresh where that is random."""
        with torch.random.fork_rng(enabled=not self.values), pyro.get_param_store().scope():
            trace = poutine.trace(self.function).get_trace(*self.args)
            store = pyro.get_param_store()
            found = {
                n: store._constraints[n] for n, s in trace.nodes.items() if s["type"] == "param"
            }
            for name, constraint in found.items():
                self.constraints[name] = constraint
                self._set(name, store._params[name].detach().clone())

    def forward(self, *args, **kwargs):
        with _Own(self), Filled(self._held):
            return self.function(*args, **kwargs)

    def constrained(self, name):
        """The parameter of that name in its own space, differentiable."""
        raw = self.values[_key(name)]
        value = transform_to(self.constraints[name])(raw)
        value.unconstrained = weakref.ref(raw)
        return value

    def _held(self, name):
        return self.constrained(name) if name in self.constraints else None

    def _set(self, name, value):
        key = _key(name)
        if key in self.values:
            with torch.no_grad():
                self.values[key].copy_(value)
        else:
            self.values[key] = nn.Parameter(value)


class Filled(Messenger):
    """Puts values into the networks that a program hands to `pyro.module`, until it ends.

    By itself `pyro.module` only registers a network, which goes on with its own parameters.  The
    network, which other programs may share, is left as it was.
    value_of(name) -> the value of the parameter of that name, None for the network's own.
    """

    def __init__(self, value_of):
        super().__init__()
        self.value_of, self.before = value_of, {}

    def _pyro_param(self, message):
        _, divider, path = message["name"].partition("$$$")
        network = _registered_now() if divider else None
        value = None if network is None else self.value_of(message["name"])
        if value is None:
            return
        part, _, own = path.rpartition(".")
        parameters = dict(network.named_modules())[part]._parameters
        if (id(parameters), own) not in self.before:
            self.before[id(parameters), own] = parameters, parameters[own]
            parameters[own] = value

    def __exit__(self, *exception):
        for (_, own), (parameters, value) in self.before.items():
            parameters[own] = value
        self.before.clear()
        return super().__exit__(*exception)


def _registered_now():
    """The network whose registration by `pyro.module` is under way, None where there is none.

    The message of its parameter does not hold it; the frame of the call does, by whatever name
    the program imported the function.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not pyro.module.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["nn_module"]


class _Own(Messenger):
    """Answers every `param` message with the Program's own value."""

    def __init__(self, program):
        super().__init__()
        self.program = program

    def _pyro_param(self, message):
        if message["name"] in self.program.constraints:
            message["value"] = self.program.constrained(message["name"])
            message["done"] = True


def _key(name):
    # The prefix keeps a parameter called "values" apart from ParameterDict's own attributes.
    return "own_" + name.replace(".", "__")

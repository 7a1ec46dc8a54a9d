"""`Program`: a plain Pyro function as a module that owns its parameters."""

import weakref
from contextlib import contextmanager

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
        with _Own(self), _networks_filled():
            return self.function(*args, **kwargs)

    def constrained(self, name):
        """The parameter of that name in its own space, differentiable."""
        raw = self.values[_key(name)]
        value = transform_to(self.constraints[name])(raw)
        value.unconstrained = weakref.ref(raw)
        return value

    def _set(self, name, value):
        key = _key(name)
        if key in self.values:
            with torch.no_grad():
                self.values[key].copy_(value)
        else:
            self.values[key] = nn.Parameter(value)


@contextmanager
def _networks_filled():
    """Inside, `pyro.module` puts the Program's values into the network that it is given.

    By itself it only registers them, and the network would go on with its own.  Afterwards the
    network, which the function closes over and other Programs share, is as it was.
    """
    register, before = pyro.module, []

    def fill(name, network, update_module_params=True):
        before.extend((part, dict(part._parameters)) for part in network.modules())
        return register(name, network, update_module_params=True)

    pyro.module = fill
    try:
        yield
    finally:
        pyro.module = register
        for part, parameters in reversed(before):
            part._parameters.update(parameters)


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

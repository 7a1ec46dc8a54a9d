"""`CompiledTrace_ELBO`: Pyro's `Trace_ELBO`, recorded once and run as compiled code."""

import warnings
import weakref
from collections import OrderedDict
from operator import attrgetter

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch.distributions import constraints, transform_to
from torch.utils._pytree import tree_flatten, tree_unflatten

from experiments.svi.compiler import CannotCompile, compile_graph
from experiments.svi.fingerprint import SCALARS, Sights
from experiments.svi.record import CannotRecord, record
from experiments.svi.surrogate import (
    accumulate,
    differentiate,
    enumerated_particle,
    mean_losses,
    particle,
)

LAYOUT = attrgetter("shape", "dtype", "device", "requires_grad")
KEPT = 64
"""Recordings of one loss that are kept; the one used longest ago goes first."""
RESTLESS = 16
"""Steps in a row, each of a kind not seen before, after which a warning says so."""


class Compiled:
    """What the compiled losses share; `particle` computes theirs of a pair of traces."""

    def __init__(self, *args, fallback_random=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.fallback_random = fallback_random
        self._steps, self._sights = OrderedDict(), Sights()
        self._warned, self._news = set(), 0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        """The loss (nats), a tensor where compiled code ran; adds gradients to every `grad`."""
        call = Call(model, guide, args, kwargs)
        step = self._step(call)
        if step is None:
            return super().loss_and_grads(model, guide, *args, **kwargs)
        if step.run is None:
            with poutine.trace(param_only=True) as capture:
                loss = super().loss_and_grads(model, guide, *args, **kwargs)
            step.notice(capture.trace)
            self._keep(call.key(self._sights), step)
            return loss
        return step(call.tensors)

    def _step(self, call):
        """The step for a call: new, compiled, or None where Pyro is to run it."""
        reason = call.refusal() or self._sights.restless(call.pair)
        if reason:
            return self._eager(reason)
        key = call.key(self._sights)
        step = self._steps.get(key)
        if step is None or not step.fits():
            self._count()
            return Step()
        self._news = 0
        self._steps.move_to_end(key)
        if step.run is None and step.reason is None:
            self._compile(step, call, key)
        return step if step.reason is None else self._eager(step.reason)

    def _compile(self, step, call, key):
        try:
            step.record(self, call)
            if call.key(self._sights)[0] != key[0]:
                self._sights.mark(call.pair)
                raise CannotRecord(self._sights.restless(call.pair))
            step.run = compile_graph(step.graph, step.inputs(call.tensors), self.fallback_random)
        except (CannotRecord, CannotCompile) as error:
            step.reason = str(error)

    def _keep(self, key, step):
        self._steps[key] = step
        while len(self._steps) > KEPT:
            self._steps.popitem(last=False)

    def _count(self):
        self._news += 1
        if self._news == RESTLESS:
            self._eager(
                f"{RESTLESS} steps in a row had each an argument, shape or setting not seen before;"
                " pass numbers that change as tensors"
            )

    def _eager(self, reason):
        """Say once that Pyro runs a step, and why."""
        if reason not in self._warned:
            self._warned.add(reason)
            sentence = f"{type(self).__name__} leaves steps to Pyro, uncompiled: {reason}"
            warnings.warn(sentence, UserWarning, stacklevel=4)


class CompiledTrace_ELBO(Compiled, Trace_ELBO):
    """A drop-in for `Trace_ELBO`: SVI(model, guide, optim, CompiledTrace_ELBO()).

    For pairs of static structure: the same operations at every step.  The first step of each kind
    (shapes, types and device of the tensors among the arguments, values of the others, what the
    programs can see) is Pyro's own; the second is recorded and compiled, which takes seconds, and
    all later ones run the compiled code.  What cannot be recorded or compiled runs as Pyro runs
    it, after one warning that names the reason.  `loss` and `differentiable_loss` are Pyro's own.

    fallback_random: draw what eager torch draws from the same random state; else Inductor's own
    generator draws, from the same distributions.
    """

    particle = staticmethod(particle)


class CompiledTraceEnum_ELBO(Compiled, TraceEnum_ELBO):
    """The same for `TraceEnum_ELBO`."""

    particle = staticmethod(enumerated_particle)


class Call:
    """The model, guide and arguments of one step."""

    def __init__(self, model, guide, args, kwargs):
        self.model, self.guide = model, guide
        self.pair = id(model), id(guide)
        self.leaves, self.tree = tree_flatten((args, kwargs))
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    def refusal(self):
        """Why this call cannot be compiled, whatever the programs do; None where it may be."""
        for leaf in self.leaves:
            if isinstance(leaf, torch.Tensor):
                if leaf.requires_grad:
                    return "an argument requires a gradient"
                if leaf.layout is not torch.strided:
                    return "an argument is sparse"
            elif not isinstance(leaf, SCALARS):
                return f"an argument is a {type(leaf).__name__}, whose content nobody watches"
        if not all(type(h) is TraceMessenger and h.param_only for h in _PYRO_STACK):
            return "it is called inside of another Pyro handler"
        return None if torch.is_grad_enabled() else "gradients are switched off"

    def key(self, sights):
        """What tells this kind of step from every other; hashable."""
        leaves = tuple(
            layout(leaf) if isinstance(leaf, torch.Tensor) else (type(leaf), repr(leaf))
            for leaf in self.leaves
        )
        local = pyro.settings.get("module_local_params")
        now = torch.get_default_dtype(), torch.is_autocast_enabled(), local
        return sights.number(self.model, self.guide), leaves, self.tree, now

    def arguments(self, tensors):
        """args and kwargs with other tensors in the places of its own."""
        tensors = iter(tensors)
        leaves = [next(tensors) if isinstance(v, torch.Tensor) else v for v in self.leaves]
        return tree_unflatten(leaves, self.tree)


class Step:
    """One kind of step: what it needs besides arguments, and compiled code once there is some."""

    def __init__(self):
        self.run = self.reason = self.graph = None
        self.params, self.held, self.variables = {}, [], []
        self.watched, self.looks = [], None

    def notice(self, trace):
        """Remember which parameters Pyro's own step met, and the tensors behind them."""
        for name, site in trace.nodes.items():
            if site["type"] == "param":
                value = site["value"]
                tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
                self.params[name] = tensor, site["kwargs"].get("constraint"), name in store()
        self._watch()

    def fits(self):
        """Whether parameters and held tensors are what they were when the step was made."""
        return self._look() == self.looks

    def record(self, elbo, call):
        """Make the graph of loss and gradients.  Raises CannotRecord."""

        def function(*tensors):
            args, kwargs = call.arguments(tensors)
            with poutine.block(), pyro.validation_enabled(False):
                loss, surrogate = mean_losses(elbo, call.model, call.guide, args, kwargs)
            self.variables, gradients = differentiate(surrogate, bool(self.params))
            return (loss, *gradients)

        # Detached: else an argument and a held tensor could be one object, now but not later.
        self.graph, self.held = record(function, [t.detach() for t in call.tensors])
        self._watch()

    def inputs(self, tensors):
        """What the graph takes."""
        return [*tensors, *self.held]

    def __call__(self, tensors):
        with torch.no_grad():
            self._report()
            loss, *gradients = self.run(self.inputs(tensors))
            accumulate(self.variables, gradients)
        if loss.device.type == "cpu":  # elsewhere it would wait for the device
            warn_if_nan(loss, "loss")
        return loss

    def _report(self):
        """Tell the handlers around, `SVI.step` first of all, which parameters took part."""
        for name, (tensor, constraint, inside) in self.params.items():
            if inside:
                pyro.param(name)
            else:
                value = transform_to(constraint or constraints.real)(tensor)
                value.unconstrained = weakref.ref(tensor)
                effectful(type="param")(lambda *_, value=value, **__: value)(name, name=name)

    def _look(self):
        """Which tensors are in the store, and all that compiled code takes for granted of them."""
        inside = list(map(id, map(store().get, self.params)))
        return inside, list(map(LAYOUT, self.watched)), list(map(torch.Tensor.stride, self.watched))

    def _watch(self):
        tensors = *(tensor for tensor, _, _ in self.params.values()), *self.held
        self.watched = list({id(tensor): tensor for tensor in tensors}.values())
        self.looks = self._look()


def store():
    """Pyro's parameters by name, unconstrained."""
    return pyro.get_param_store()._params


def layout(tensor):
    """What tells apart the arguments of different recordings."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device

"""`CompiledTrace_ELBO`: Pyro's `Trace_ELBO`, recorded once and run as compiled code."""

import warnings
import weakref
from collections import OrderedDict

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch.distributions import constraints, transform_to
from torch.utils._pytree import tree_flatten, tree_unflatten

from experiments.svi.compiler import CannotCompile, compile_graph
from experiments.svi.fingerprint import SCALARS, Fingerprint
from experiments.svi.record import CannotRecord, record
from zoo.problem import sample_sites

KEPT = 64
"""Recordings of one loss that are kept; the one used longest ago goes first."""
RESTLESS = 16
"""Steps in a row, each of a kind not seen before, after which a warning says so."""


class CompiledTrace_ELBO(Trace_ELBO):
    """A drop-in for `Trace_ELBO`: SVI(model, guide, optim, CompiledTrace_ELBO()).

    For pairs of static structure: the same operations at every step.  The first step of each kind
    (shapes, types and device of the tensors among the arguments, values of the others, what the
    programs can see) is Pyro's own; the second is recorded and compiled, which takes seconds, and
    all later ones run the compiled code.  What cannot be recorded or compiled runs as Pyro runs
    it, after one warning that names the reason.  `loss` and `differentiable_loss` are Pyro's own.

    fallback_random: draw what eager torch draws from the same random state; else Inductor's own
    generator draws, from the same distributions.
    """

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
            self._compile(step, call)
            if call.key(self._sights)[0] != key[0]:
                self._sights.mark(call.pair)
                step.reason = self._sights.restless(call.pair)
        return step if step.reason is None else self._eager(step.reason)

    def _compile(self, step, call):
        try:
            step.record(self, call)
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
        if not all(type(handler) is TraceMessenger for handler in _PYRO_STACK):
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
        self.layouts = None

    def notice(self, trace):
        """Remember which parameters Pyro's own step met, and the tensors behind them."""
        for name, site in trace.nodes.items():
            if site["type"] == "param":
                value = site["value"]
                tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
                self.params[name] = tensor, site["kwargs"].get("constraint"), name in store()
        self._look()

    def fits(self):
        """Whether parameters and held tensors are what they were when the step was made."""
        same = all((store().get(n) is t) == inside for n, (t, _, inside) in self.params.items())
        return same and self.layouts == [layout(t) for t in self._watched()]

    def record(self, elbo, call):
        """Make the graph of loss and gradients.  Raises CannotRecord."""

        def function(*tensors):
            args, kwargs = call.arguments(tensors)
            with poutine.block(), pyro.validation_enabled(False):
                loss, surrogate = tensor_losses(elbo, call.model, call.guide, args, kwargs)
            self.variables, gradients = differentiate(surrogate, bool(self.params))
            return (loss.detach(), *gradients)

        # Detached: else an argument and a held tensor could be one object, now but not later.
        self.graph, self.held = record(function, [t.detach() for t in call.tensors])
        self._look()

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

    def _watched(self):
        return [*(tensor for tensor, _, _ in self.params.values()), *self.held]

    def _look(self):
        self.layouts = [layout(tensor) for tensor in self._watched()]


class Sights:
    """Numbers for what pairs of programs can see: equal where it is the same."""

    def __init__(self):
        self._now, self._numbers, self._restless = {}, OrderedDict(), set()
        self._count = 0

    def number(self, model, guide):
        """The number of what the pair sees now."""
        pair = id(model), id(guide)
        if pair not in self._now or not self._now[pair][1].holds():
            sight = Fingerprint((model, guide))
            if sight.tokens not in self._numbers:
                self._count += 1
                self._numbers[sight.tokens] = self._count, sight
                if len(self._numbers) > KEPT:
                    self._numbers.popitem(last=False)
            self._now[pair] = self._numbers[sight.tokens][0], sight
        return self._now[pair][0]

    def mark(self, pair):
        """Note that running the pair changes what it sees."""
        self._restless.add(pair)

    def restless(self, pair):
        """Why a pair cannot be compiled, None where it may be."""
        return "the programs change what they see as they run" if pair in self._restless else None


def tensor_losses(elbo, model, guide, args, kwargs):
    """(loss, surrogate) of a Trace_ELBO as tensors: the estimate in nats, and what has its gradient.

    The surrogate's terms are Pyro's: log p(x, z) less the entropy term of every site, and log r of
    the plates around a site times its score function.
    """
    loss = surrogate = 0.0
    for model_trace, guide_trace in elbo._get_traces(model, guide, args, kwargs):
        log_p = sum(site["log_prob_sum"] for site in sample_sites(model_trace))
        bound = gain = log_p
        log_r = None
        for site in sample_sites(guide_trace):
            _, score, entropy = site["score_parts"]
            bound = bound - site["log_prob_sum"]
            if not is_identically_zero(entropy):
                gain = gain - entropy.sum()
            if not is_identically_zero(score):
                log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
                gain = gain + (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
        loss = loss - bound / elbo.num_particles
        surrogate = surrogate - gain / elbo.num_particles
    if not isinstance(loss, torch.Tensor):
        raise CannotRecord("the programs have no sample site")
    return loss, surrogate


def differentiate(surrogate, trainable):
    """(variables, gradients): the tensors that backward() would reach, with their gradients."""
    if not (trainable and surrogate.requires_grad):
        return [], []
    variables = leaves_of(surrogate)
    gradients = torch.autograd.grad(surrogate, variables, allow_unused=True)
    pairs = [(v, g) for v, g in zip(variables, gradients, strict=True) if g is not None]
    if any(gradient.layout is not torch.strided for _, gradient in pairs):
        raise CannotRecord("a gradient is sparse")
    return [v for v, _ in pairs], [g for _, g in pairs]


def leaves_of(tensor):
    """The tensors at the ends of a tensor's autograd graph, nearest first."""
    found, known, nodes = [], set(), [tensor.grad_fn]
    for node in nodes:
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                nodes.append(following)
    return found


def accumulate(variables, gradients):
    """Add gradients to `grad`, as backward() does."""
    old = [(v.grad, g) for v, g in zip(variables, gradients, strict=True) if v.grad is not None]
    if old:
        torch._foreach_add_(*map(list, zip(*old, strict=True)))
    if len(old) < len(variables):
        for variable, gradient in zip(variables, gradients, strict=True):
            if variable.grad is None:
                # Compiled code may hand out one memory twice.
                variable.grad = torch.empty_like(variable).copy_(gradient)


def store():
    """Pyro's parameters by name, unconstrained."""
    return pyro.get_param_store()._params


def layout(tensor):
    """All of a tensor that compiled code takes for granted."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad

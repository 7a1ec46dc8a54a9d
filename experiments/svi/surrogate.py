"""The losses of Pyro's ELBOs and their gradients, without taking a value out of a tensor."""

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.trace_elbo import _compute_log_r
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from torch.overrides import TorchFunctionMode

from experiments.svi.record import CannotRecord
from zoo.problem import sample_sites


def particle(model_trace, guide_trace, weigh=lambda log_r: log_r):
    """(loss, surrogate) of a pair of traces: the estimate in nats, and what has its gradient.

    The surrogate's terms are Pyro's: log p(x, z) less the entropy term of every site, and the log r
    of the plates around a site, as `weigh` returns it, times its score function.
    """
    bound = gain = sum(site["log_prob_sum"] for site in sample_sites(model_trace))
    log_r = None
    for site in sample_sites(guide_trace):
        _, score, entropy = site["score_parts"]
        bound = bound - site["log_prob_sum"]
        if not is_identically_zero(entropy):
            gain = gain - entropy.sum()
        if not is_identically_zero(score):
            log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
            gain = gain + (weigh(log_r.sum_to(site["cond_indep_stack"])) * score).sum()
    return -bound, -gain


def enumerated_particle(model_trace, guide_trace):
    """The same under enumeration, whose loss is its own surrogate."""
    with _Whole():
        loss = -_compute_dice_elbo(model_trace, guide_trace)
    return loss, loss


def mean_losses(elbo, model, guide, args=(), kwargs=None, particle=None):
    """(loss, surrogate) of an ELBO object as tensors, the mean over its particles.

    particle: what computes them of a pair of traces, by default the object's own.
    """
    traces = elbo._get_traces(model, guide, args, kwargs or {})
    pairs = [(particle or elbo.particle)(*pair) for pair in traces]
    loss, surrogate = (sum(each) / elbo.num_particles for each in zip(*pairs, strict=True))
    if not isinstance(loss, torch.Tensor):
        raise CannotRecord("the programs have no sample site")
    return loss.detach(), surrogate


class _Whole(TorchFunctionMode):
    """Sums over values of probability zero too, their terms set to zero.

    Pyro looks whether any probability is zero, and leaves such values out: the size of what is left
    would depend on values.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.all:
            return False
        if func is torch.Tensor.masked_select:
            values, mask = args
            return torch.where(mask, values, torch.zeros_like(values))
        return func(*args, **(kwargs or {}))


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

"""CompiledTrace_ELBO: the same numbers as Trace_ELBO, and never those of another program."""

import re

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from static_pairs import PAIRS

from experiments import CompiledTrace_ELBO
from experiments.svi import compiled_elbo

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture
def uncompiled(monkeypatch):
    """Recorded graphs run as they are: milliseconds instead of a compilation."""
    made = []

    def keep(graph, inputs, fallback_random):
        made.append((graph, inputs))
        return lambda inputs: graph(*inputs)

    monkeypatch.setattr(compiled_elbo, "compile_graph", keep)
    return made


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def steps(name, kind, count=4, **options):
    """Losses, gradients and random state after each of some steps; buffers at the end."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    pair = PAIRS[name]()
    elbo = kind(**pair.settings, **options)
    found, params = [], {}
    for step in range(count):
        with poutine.trace(param_only=True) as capture:
            loss = float(elbo.loss_and_grads(pair.model, pair.guide, *pair.args, **pair.kwargs))
        # The zoo numbers its modules: vae_1, vae_2.
        sites = {re.sub(r"_\d+\.", ".", n): site for n, site in capture.trace.nodes.items()}
        params = {name: site["value"].unconstrained() for name, site in sites.items()}
        grads = {n: None if p.grad is None else p.grad.clone() for n, p in params.items()}
        found.append((loss, grads, torch.get_rng_state()))
        for parameter in params.values():
            if step % 2:  # at every other step they add up
                parameter.grad = None
            parameter.data.mul_(0.9).add_(0.01)
    buffers = [b.clone() for m in pair.modules for b in m.buffers()]
    return found, buffers, elbo


def assert_same(one, two, rtol):
    for (loss, grads, state), (other, others, after) in zip(one[0], two[0], strict=True):
        assert loss == pytest.approx(other, rel=rtol)
        assert grads.keys() == others.keys()
        for name, gradient in grads.items():
            assert (gradient is None) == (others[name] is None), name
            if gradient is not None:
                scale = float(gradient.abs().max())
                torch.testing.assert_close(
                    others[name], gradient, rtol=rtol, atol=rtol * scale, msg=name
                )
        assert torch.equal(state, after)
    torch.testing.assert_close(one[1], two[1], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", PAIRS)
def test_recorded_step_equals_trace_elbo(name, dtype, uncompiled):
    """Loss, every gradient, buffers and the random state, from the first step on."""
    ours = steps(name, CompiledTrace_ELBO, fallback_random=True)
    assert_same(steps(name, Trace_ELBO), ours, TOLERANCE[dtype])
    assert len(uncompiled) == 1

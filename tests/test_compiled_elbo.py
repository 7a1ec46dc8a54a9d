"""CompiledTrace_ELBO: the same numbers as Trace_ELBO, and never those of another program."""

import re
import types
import warnings
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from registered import RECORDABLE
from static_pairs import PAIRS, Pair
from torch import nn

from experiments import CompiledTrace_ELBO, CompiledTraceEnum_ELBO
from experiments.svi import compiled_elbo, compiler
from experiments.svi.compiler import compile_graph
from experiments.svi.record import record

COMPILED = [
    "auto_normal",
    "auto_multivariate",
    "auto_low_rank",
    "auto_flow",
    "ten_particles",
    "vectorized_particles",
    "score_function",
    "score_function_of_particles",
    "delta_sites",
    "masks_and_scales",
    "nested_plates",
    "subsampled",
    "structured_arguments",
    "networks",
    "pyro_module",
    "implicit_gradients",
    "enumerated_guide",
    "bernoulli_mixture-amortized",
    "gaussian_lvm-mean_field",
    "vae-amortized",
]
"""The pairs that are compiled too."""
COMPILED_DOUBLE = ["auto_normal", "networks"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
ROUGH = {"linear_gaussian_ssm-amortized_full_rank": {torch.float32: 1e-3}}
"""Sixteen correlated numbers, noise of 0.001: float32 rounds more, and float64 is held to 1e-10."""


@pytest.fixture
def uncompiled(monkeypatch):
    """Recorded graphs run as they are: milliseconds instead of a compilation."""
    made = []

    def keep(graph, inputs, fallback_random):
        made.append((graph, inputs))
        return lambda inputs: graph(*inputs)

    monkeypatch.setattr(compiled_elbo, "compile_graph", keep)
    return made


@pytest.fixture
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


OURS = {"trace": CompiledTrace_ELBO, "enumeration": CompiledTraceEnum_ELBO}
PYROS = {"trace": Trace_ELBO, "enumeration": TraceEnum_ELBO}


def steps(name, kinds, count=4, **options):
    """Losses, gradients and random state after each of some steps; buffers at the end."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    pair = PAIRS[name]()
    elbo = kinds[pair.elbo](**pair.settings, **options)
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
        found = [gradient for gradient in grads.values() if gradient is not None]
        largest = max((float(gradient.abs().max()) for gradient in found), default=0.0)
        for name, gradient in grads.items():
            assert (gradient is None) == (others[name] is None), name
            if gradient is not None:
                # Gradients that cancel, as of a bias before a batch norm, are rounding alone.
                scale = float(gradient.abs().max())
                rounding = 64 * torch.finfo(gradient.dtype).eps * largest
                atol = rounding if scale < rounding else rtol * scale
                torch.testing.assert_close(others[name], gradient, rtol=rtol, atol=atol, msg=name)
        assert torch.equal(state, after)
    torch.testing.assert_close(one[1], two[1], rtol=rtol, atol=rtol)


DTYPES = (torch.float32, torch.float64)
OF_THE_ZOO = [f"{model}-{guide}" for model, guide in RECORDABLE]
CASES = [
    *product([name for name in PAIRS if name not in OF_THE_ZOO], DTYPES),
    *((name, DTYPES[place % 2]) for place, name in enumerate(OF_THE_ZOO)),
]
"""Every construct in both types; the zoo's pairs, of which each guide has many, in one by turns."""


@pytest.mark.parametrize(
    ("name", "dtype"),
    CASES,
    indirect=["dtype"],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_recorded_step_equals_trace_elbo(name, dtype, uncompiled):
    """Loss, every gradient, buffers and the random state, from the first step on."""
    ours = steps(name, OURS, fallback_random=True)
    assert_same(steps(name, PYROS), ours, (TOLERANCE | ROUGH.get(name, {}))[dtype])
    assert len(uncompiled) == 1


@pytest.mark.slow
def test_compiled_graphs_equal_recorded_ones(uncompiled):
    """Pairs of both dtypes in one graph, so that the compiler runs once: the same draws, numbers.

    The recorded graphs are those of the test above, which equal Trace_ELBO's.
    """
    for dtype, names in (("float32", COMPILED), ("float64", COMPILED_DOUBLE)):
        torch.set_default_dtype(getattr(torch, dtype))
        for name in names:
            steps(name, OURS, count=2, fallback_random=True)
    torch.set_default_dtype(torch.float32)
    inputs = [[t.detach().clone() for t in inputs] for _, inputs in uncompiled]

    def every(*tensors):
        tensors = iter(tensors)
        parts = [[next(tensors) for _ in own] for own in inputs]
        found = [g(*own) for (g, _), own in zip(uncompiled, parts, strict=True)]
        return tuple(out for part in found for out in part)

    flat = [tensor for own in inputs for tensor in own]
    graph, held = record(every, flat)
    run = compile_graph(graph, [*flat, *held], fallback_random=True)
    torch.manual_seed(5)
    expected = [
        g(*(t.clone() for t in own)) for (g, _), own in zip(uncompiled, inputs, strict=True)
    ]
    state = torch.get_rng_state()
    torch.manual_seed(5)
    found = iter(run([*flat, *held]))
    for outputs in expected:
        largest = max(float(right.abs().max()) for right in outputs)  # gradients may be zero
        for right in outputs:
            rtol = TOLERANCE[right.dtype]
            torch.testing.assert_close(next(found), right, rtol=rtol, atol=rtol * largest)
    assert next(found, None) is None
    assert torch.equal(torch.get_rng_state(), state)


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("width",)

    def __init__(self):
        self.width = 1.0


class Edited(nn.Module):
    """A model of which every part that it can see may be changed."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.shift, self.center = 0.5, torch.zeros(())
        self.sizes, self.layer = [1.0, 2.0], nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
        self.settings = SimpleNamespace(width=1.0)
        self.active, self.weights, self.slotted = {"a"}, np.ones(2), Slotted()
        self.named = {"a": 1.0, "b": 1.0}

    def forward(self, y):
        net = pyro.module("layer", self.layer)
        z = pyro.sample("z", dist.Normal(self.shift, self.settings.width))
        mean = net(y[:, None])[:, 0] * helper(z) * self.factor + self.center + self.sizes[0]
        if "a" in self.named:
            mean = mean + len(self.active) + float(self.weights[0]) + self.slotted.width
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


POWER = 2
HELPERS = types.ModuleType("helpers")
HELPERS.__file__, HELPERS.shift = "helpers.py", 0.0


def helper(z, offset=0.0):
    return z**POWER + offset + HELPERS.shift


def normal_guide(*args):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.ones(())), 1.0))


EDITS = {
    "attribute": lambda m: setattr(m, "shift", 3.0),
    "new attribute": lambda m: setattr(m, "factor", 3.0),
    "tensor attribute": lambda m: setattr(m, "center", torch.ones(())),
    "tensor in place": lambda m: m.center.add_(2),
    "list": lambda m: m.sizes.__setitem__(0, 4.0),
    "object": lambda m: setattr(m.settings, "width", 2.0),
    "set": lambda m: m.active.add("b"),
    "array": lambda m: m.weights.__setitem__(0, 3.0),
    "slot": lambda m: setattr(m.slotted, "width", 3.0),
    "key": lambda m: m.named.__setitem__("c", m.named.pop("a")),
    "training": lambda m: m.layer.eval(),
    "layer": lambda m: m.layer.__setitem__(1, nn.Dropout(0.1)),
    "setting of a layer": lambda m: setattr(m.layer[1], "p", 0.9),
    "frozen": lambda m: m.layer[0].bias.requires_grad_(False),
    "new parameter": lambda m: setattr(m.layer[0], "weight", nn.Parameter(torch.ones(1, 1))),
    "parameter's data": lambda m: setattr(m.layer[0].weight, "data", torch.ones(1, 1)),
    "parameter's type": lambda m: m.layer.double(),
    "hook": lambda m: m.layer.register_forward_hook(lambda _, inputs, output: output + 1),
    "cleared store": lambda m: pyro.clear_param_store(),
    "default type": lambda m: torch.set_default_dtype(torch.float64),
}


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_model_is_not_served_from_the_old_recording(edit, uncompiled):
    """After an edit the numbers are those of Trace_ELBO on the edited model."""
    found = []
    for kind, options in ((Trace_ELBO, {}), (CompiledTrace_ELBO, {"fallback_random": True})):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, y = Edited(), torch.randn(4)
        svi = SVI(model, normal_guide, pyro.optim.SGD({"lr": 0.01}), kind(**options))
        losses = [svi.step(y) for _ in range(3)]
        edit(model)
        y = y.to(next(model.parameters()).dtype)
        losses += [svi.step(y) for _ in range(3)]
        torch.set_default_dtype(torch.float32)
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert uncompiled


def edit_global(monkeypatch, values):
    monkeypatch.setitem(globals(), "POWER", 3)


def edit_module(monkeypatch, values):
    monkeypatch.setattr(HELPERS, "shift", 3.0)


def edit_helper(monkeypatch, values):
    monkeypatch.setitem(globals(), "helper", lambda z: 3 * z)


def edit_code(monkeypatch, values):
    monkeypatch.setattr(helper, "__code__", (lambda z, offset=0.0: 3 * z).__code__)


def edit_defaults(monkeypatch, values):
    monkeypatch.setattr(helper, "__defaults__", (1.0,))


def edit_class(monkeypatch, values):
    monkeypatch.setattr(Edited, "factor", 2.0)


def edit_method(monkeypatch, values):
    def forward(self, y):
        z = pyro.sample("z", dist.Normal(2.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    monkeypatch.setattr(Edited, "forward", forward)


def edit_closure(monkeypatch, values):
    values["scale"] = 3.0


def edit_cell(monkeypatch, values):
    values["rebind"]()


@pytest.mark.parametrize(
    "edit",
    [
        edit_global,
        edit_module,
        edit_helper,
        edit_code,
        edit_defaults,
        edit_class,
        edit_method,
        edit_closure,
        edit_cell,
    ],
)
def test_edited_code_is_not_served_from_the_old_recording(edit, uncompiled, monkeypatch):
    rate, edited = 1.0, Edited().eval()

    def rebind():
        nonlocal rate
        rate = 2.0

    values = {"scale": 1.0, "rebind": rebind}
    model = partial(lambda m, y: poutine.scale(m, scale=rate * values["scale"])(y), edited)
    y, ours, eager = torch.randn(4), CompiledTrace_ELBO(fallback_random=True), Trace_ELBO()

    def losses(count):
        found = []
        for _ in range(count):
            seed = torch.get_rng_state()
            found.append([float(eager.loss_and_grads(model, normal_guide, y))])
            torch.set_rng_state(seed)
            found[-1].append(float(ours.loss_and_grads(model, normal_guide, y)))
        return torch.tensor(found)

    before = losses(3)
    edit(monkeypatch, values)
    after = losses(3)
    for numbers in (before, after):
        torch.testing.assert_close(numbers[:, 0], numbers[:, 1])
    assert len(uncompiled) == 2


def test_batches_of_other_sizes_and_two_models_do_not_mix(uncompiled):
    """Each size, and each model, has its own recording; going back needs no new one."""

    def other(x, y):
        pyro.sample("z", dist.Normal(x.sum(), 1.0))

    pairs = [PAIRS["auto_normal"](), Pair(other, normal_guide)]
    ours, eager = CompiledTrace_ELBO(fallback_random=True), Trace_ELBO()
    data = [(torch.randn(n, 2), torch.randn(n)) for n in (5, 3)]
    for pair in pairs:  # makes the parameters, which takes draws
        eager.loss(pair.model, pair.guide, *data[0])
    for _ in range(3):
        for pair in pairs:
            for args in data:
                state = torch.get_rng_state()
                expected = eager.loss_and_grads(pair.model, pair.guide, *args)
                torch.set_rng_state(state)
                loss = ours.loss_and_grads(pair.model, pair.guide, *args)
                assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert len(uncompiled) == 4


def test_same_tensor_twice_is_no_alias(uncompiled):
    """One tensor for two arguments, or for an argument and a held tensor: later they differ."""
    held = torch.ones(3)

    def model(x, y):
        pyro.sample("z", dist.Normal((x + 2 * y + 4 * held).sum(), 1.0))

    ours = CompiledTrace_ELBO()
    for args in ((held, held), (held, held), (torch.zeros(3), held), (held, torch.zeros(3))):
        ours.loss_and_grads(model, normal_guide, *args)
    with torch.no_grad():
        pyro.param("loc").fill_(0)
    assert len(uncompiled) == 1
    for place in ((0, 1), (1, 0)):
        zero = [torch.zeros(3), held]
        torch.manual_seed(0)
        loss = ours.loss_and_grads(model, normal_guide, zero[place[0]], zero[place[1]])
        torch.manual_seed(0)
        right = Trace_ELBO().loss_and_grads(model, normal_guide, zero[place[0]], zero[place[1]])
        assert float(loss) == pytest.approx(right, rel=1e-5)


def by_value(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z if y.sum() > 0 else -z, 1.0).expand([len(y)]).to_event(1), obs=y)


def by_numpy(y):
    pyro.sample("z", dist.Normal(float(np.random.rand()), 1.0))


def counting():
    steps = []

    def model(y):
        steps.append(1)
        pyro.sample("z", dist.Normal(float(len(steps)), 1.0))

    return model


def sparse():
    table = nn.Embedding(5, 1, sparse=True)

    def model(y):
        net = pyro.module("table", table)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = net(torch.arange(len(y)))[:, 0] + z
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return model


class Setting:
    value = 1.0


@pytest.mark.parametrize(
    ("make", "kwargs", "reason"),
    [
        (lambda: by_value, {}, "depends on the value of a tensor"),
        (lambda: by_numpy, {}, "random numbers of Python or NumPy"),
        (counting, {}, "change what they see as they run"),
        (sparse, {}, "a gradient is sparse"),
        (
            lambda: lambda y, setting: by_value(y),
            {"setting": Setting()},
            "an argument is a Setting",
        ),
        (
            lambda: lambda y, weight: by_value(y * weight),
            {"weight": torch.ones((), requires_grad=True)},
            "an argument requires a gradient",
        ),
    ],
)
def test_what_cannot_be_recorded_runs_as_before_after_one_warning(make, kwargs, reason):
    found = []
    for kind in (Trace_ELBO, CompiledTrace_ELBO):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        np.random.seed(0)
        model, y = make(), torch.randn(4)

        def guide(y, **kwargs):
            return normal_guide(y)

        elbo = kind()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append([float(elbo.loss_and_grads(model, guide, y, **kwargs)) for _ in range(4)])
        ours = [w for w in caught if "uncompiled" in str(w.message)]
    if make is not counting:  # recording runs the program once more
        assert found[0] == found[1]
    assert len(ours) == 1
    assert issubclass(ours[0].category, UserWarning)
    assert reason in str(ours[0].message)


def test_without_a_compiler_steps_are_pyros(monkeypatch):
    monkeypatch.setattr(compiler, "missing_compiler", lambda kind: "there is no C++ compiler")
    with pytest.warns(UserWarning, match=r"CompiledTrace_ELBO.*there is no C\+\+ compiler") as said:
        ours = steps("auto_normal", OURS)
    assert len(said) == 1
    assert_same(steps("auto_normal", PYROS), ours, rtol=0)


def test_arguments_that_never_come_back_are_warned_of(uncompiled):
    def model(beta):
        pyro.sample("z", dist.Normal(beta, 1.0))

    ours = CompiledTrace_ELBO()

    def run():
        for step in range(40):
            ours.loss_and_grads(model, normal_guide, step / 10)

    with pytest.warns(UserWarning, match="pass numbers that change as tensors") as said:
        run()
    assert len(said) == 1
    assert not uncompiled


def test_steps_inside_of_a_handler_are_pyros(uncompiled):
    ours, pair = CompiledTrace_ELBO(), PAIRS["auto_normal"]()
    for _ in range(3):
        ours.loss_and_grads(pair.model, pair.guide, *pair.args)
    torch.manual_seed(0)
    right = Trace_ELBO().loss_and_grads(pair.model, pair.guide, *pair.args)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="another Pyro handler"), poutine.scale(scale=3.0):
        loss = ours.loss_and_grads(pair.model, pair.guide, *pair.args)
    assert loss == pytest.approx(3 * right, rel=1e-5)


def test_other_losses_are_pyros(uncompiled):
    pair, ours, eager = PAIRS["auto_normal"](), CompiledTrace_ELBO(), Trace_ELBO()
    eager.loss(pair.model, pair.guide, *pair.args)
    for name in ("loss", "differentiable_loss"):
        found = []
        for elbo in (ours, eager):
            torch.manual_seed(0)
            found.append(getattr(elbo, name)(pair.model, pair.guide, *pair.args))
        assert found[0] == found[1]


def test_evaluating_between_steps_needs_no_new_recording(uncompiled):
    """An autoguide builds its plates anew at every run; that is no change."""
    pair = PAIRS["subsampled_by_autoguide"]()
    svi = SVI(pair.model, pair.guide, pyro.optim.SGD({"lr": 0.01}), CompiledTrace_ELBO())
    for _ in range(4):
        svi.step(*pair.args)
        svi.evaluate_loss(*pair.args)
        pair.guide(*pair.args)
    assert len(uncompiled) == 1


def test_loss_that_is_nan_is_warned_of(uncompiled):
    def model(scale):
        pyro.sample("z", dist.Normal(0.0, scale, validate_args=False))

    ours = CompiledTrace_ELBO()
    for _ in range(2):
        ours.loss_and_grads(model, normal_guide, torch.ones(()))
    with pytest.warns(UserWarning, match="NaN"):
        ours.loss_and_grads(model, normal_guide, torch.full((), float("nan")))


@pytest.mark.slow
def test_compiled_training_ends_where_eager_training_does():
    """The whole way, compiler included: the same losses with eager draws, and no other draws."""
    found, ours = [], CompiledTrace_ELBO(fallback_random=True)
    for elbo in (Trace_ELBO(), ours):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = PAIRS["auto_normal"]()
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), elbo)
        found.append([svi.step(*pair.args) for _ in range(60)] + [float(torch.rand(()))])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert [step.reason for step in ours._steps.values()] == [None]
    assert all(isinstance(loss, float) for loss in found[1])

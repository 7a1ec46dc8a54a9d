"""Recording refuses what a graph cannot hold; compiled graphs are kept whole, bounded and apart."""

import os
import random
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from experiments.svi import compiler
from experiments.svi.compiler import CannotCompile, compile_graph, is_cached
from experiments.svi.record import CannotRecord, record, update_in_place, written_inputs

HELD = torch.tensor(2.0)
LAYER = nn.Linear(3, 3)
VALUE = "depends on the value of a tensor"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x if x.sum() > 0 else -x, VALUE),
        (lambda x: x if HELD > 0 else -x, VALUE),
        (lambda x: x * LAYER.weight[0, 0].item(), VALUE),
        (lambda x: x if torch.equal(HELD, HELD) else -x, VALUE),
        (lambda x: x * float(x.detach().numpy()[0, 0]), r"by numpy\(\)"),
        (lambda x: x * HELD.tolist(), r"by tolist\(\)"),
        (lambda x: x * np.asarray(x).sum(), r"by __array__\(\)"),
        (lambda x: x[x > 0], "size of a result"),
        (lambda x: x.nonzero(), "size of a result"),
        (lambda x: x * np.random.rand(), "Python or NumPy"),
        (lambda x: x * random.random(), "Python or NumPy"),
        (lambda x: x + torch.rand(3, generator=torch.Generator()), "Generator"),
        (lambda x: x @ x, "RuntimeError: mat1 and mat2"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(function, reason):
    with pytest.raises(CannotRecord, match=reason):
        record(lambda x: (function(x),), [torch.rand(2, 3)])


def test_constants_are_no_values_and_their_masks_are_fixed():
    def function(x):
        below = torch.arange(3)[:, None] > torch.arange(3)
        filled = torch.zeros(3, 3)
        filled[below] = x[0] * torch.tensor(2.0).item()
        return filled, filled[below]

    x = torch.rand(2, 3)
    graph, held = record(function, [x])
    y = torch.rand(2, 3)
    for ours, expected in zip(graph(y, *held), function(y), strict=True):
        assert torch.equal(ours, expected)
    assert not any("bool" in str(tensor.dtype) for tensor in held)


def test_a_mask_of_random_numbers_is_not_fixed():
    with pytest.raises(CannotRecord, match="size of a result"):
        record(lambda x: (x[torch.rand(2) < 0.5],), [torch.rand(2, 3)])


def test_recording_leaves_everything_as_it_was():
    norm, rows = nn.BatchNorm1d(3), torch.rand(5, 3)

    def function(x):
        with torch.no_grad():
            LAYER.bias[:2].add_(1)
            LAYER.bias.mul_(2)
            torch.mul(LAYER.weight, 2, out=LAYER.weight)
        x[0] = 7.0
        return (norm(x).sum() + torch.rand(()) + LAYER.bias.sum(),)

    touched = LAYER.bias, LAYER.weight, rows, *norm.buffers()
    before = [t.detach().clone() for t in touched]
    state = torch.get_rng_state()
    graph, held = record(function, [rows])
    for tensor, value in zip(touched, before, strict=True):
        assert torch.equal(tensor, value)
    assert torch.equal(torch.get_rng_state(), state)
    names = [[rows, *held][i] for i in written_inputs(graph)]
    for tensor in touched:
        assert any(tensor is name for name in names)
    with torch.no_grad():
        graph(rows, *held)
    assert norm.num_batches_tracked == 1
    assert (rows[0] == 7).all()
    with torch.no_grad():
        LAYER.bias.copy_(before[0])
        LAYER.weight.copy_(before[1])


def written_chunks(x):
    wide = x[0].expand(4, 3).exp()
    for part in wide.chunk(2):
        part[0].mul_(2)
    return wide


def written_list(x):
    made = [x[0].expand(4, 3).exp(), x.exp()]
    torch._foreach_mul_([part[0] for part in made], 2.0)
    return torch.cat(made)


def written_out(x):
    wide = x[0].expand(4, 3).exp()
    torch.mul(x, 2, out=wide[:2])
    return wide


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.relu_(nn.functional.layer_norm(x, (3,))) * 2,
        lambda x: x.exp().max(-1).values.add_(1),
        written_chunks,
        written_list,
        written_out,
    ],
    ids=["norm", "maximum", "chunks", "list", "out"],
)
def test_writes_into_results_and_pieces_of_them(function):
    x = torch.rand(2, 3)
    graph, held = record(lambda x: (function(x),), [x])
    y = torch.rand(2, 3)
    torch.testing.assert_close(graph(y, *held)[0], function(y.clone()))


def test_held_tensors_are_inputs_by_identity():
    x = torch.rand(3, 3)
    _, held = record(lambda x: (LAYER(x) * HELD + x,), [x])
    assert [any(h is t for t in (LAYER.weight, LAYER.bias, HELD)) for h in held] == [True] * 3
    _, held = record(lambda a, b: (a * b, a + LAYER.weight), [x, LAYER.weight])
    assert held == []


def test_outputs_written_into_inputs():
    graph, _ = record(lambda x, m: (x.sum(), m + 1), [torch.rand(3), torch.zeros(2)])
    update_in_place(graph, {1: 1})
    memory = torch.zeros(2)
    assert len(graph(torch.ones(3), memory)) == 1
    assert torch.equal(memory, torch.ones(2))


@pytest.fixture
def builds(monkeypatch):
    """Counts compilations; the first is real, later ones of this session take its library."""
    original, made = compiler._build, []

    def build(graph, inputs, options, place):
        made.append(place)
        if "kept" not in LIBRARY:
            LIBRARY["kept"] = place.parent.parent / "kept"
            shutil.copytree(original(graph, inputs, options, place), LIBRARY["kept"])
        return shutil.copytree(LIBRARY["kept"], place / "again")

    monkeypatch.setattr(compiler, "_build", build)
    return made


LIBRARY = {}


def noisy_square():
    """A graph with an operation that has no C interface, and its inputs."""
    weight = torch.full((2,), 3.0)
    graph, held = record(lambda x: (x * x + weight * torch._standard_gamma(x),), [torch.rand(2)])
    return graph, [torch.ones(2), *held]


def test_compiled_graph_is_kept_tried_and_repaired(builds):
    graph, inputs = noisy_square()
    assert not is_cached(graph, inputs, True)
    state = torch.get_rng_state()
    run = compile_graph(graph, inputs, fallback_random=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert is_cached(graph, inputs, True)
    assert not is_cached(graph, inputs, False)
    assert not is_cached(graph, [torch.ones(4)[::2], *inputs[1:]], True)
    torch.manual_seed(3)
    expected = graph(*inputs)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(run(inputs)[0], expected)
    assert len(builds) == 1
    compile_graph(graph, inputs, fallback_random=True)
    assert len(builds) == 1  # from disk
    entry = compiler._entry(graph, inputs, {"fallback_random": True})
    for name in ("step.so", "step.json", "sha256"):
        path = entry / name
        damaged = path.read_bytes()[:-20]
        path.unlink()  # the library is loaded: in place it would be damaged in memory too
        path.write_bytes(damaged)
        assert not is_cached(graph, inputs, True)
        compile_graph(graph, inputs, fallback_random=True)
        assert is_cached(graph, inputs, True)
    assert len(builds) == 4
    assert not list(compiler.folder().glob(".*"))


def test_two_processes_that_compile_the_same(builds, monkeypatch, tmp_path):
    """The one that comes second goes on with its own library and leaves the first's."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    graph, inputs = noisy_square()
    entry = compiler._entry(graph, inputs, {"fallback_random": True})
    tried = compiler._tried

    def other_process_is_faster(run, *args):
        shutil.copytree(LIBRARY["kept"], entry)
        return tried(run, *args)

    monkeypatch.setattr(compiler, "_tried", other_process_is_faster)
    run = compile_graph(graph, inputs, fallback_random=True)
    assert run(inputs)[0].shape == (2,)
    assert [path.name for path in compiler.folder().iterdir()] == [entry.name]


def test_cache_is_bounded_and_forgets_what_was_used_longest_ago(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "LIMIT", 250)
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        entry = compiler.folder() / name
        entry.mkdir(parents=True)
        (entry / "step.so").write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    (compiler.folder() / ".new-under-way").mkdir()
    (compiler.folder() / ".new-abandoned").mkdir()
    os.utime(compiler.folder() / ".new-abandoned", (1e9, 1e9))
    compiler.prune()
    names = {path.name for path in compiler.folder().iterdir()}
    assert names == {"new", "middle", ".new-under-way"}


def test_without_a_compiler_the_reason_is_one_line(monkeypatch):
    monkeypatch.setattr(compiler, "missing_compiler", lambda kind: "there is no C++ compiler")
    graph, inputs = noisy_square()
    with pytest.raises(CannotCompile, match="there is no C"):
        compile_graph(graph, inputs)


def test_a_missing_compiler_is_noticed(monkeypatch):
    name = "torch._inductor.cpp_builder.get_cpp_compiler"
    monkeypatch.setattr(name, lambda: "no-such-compiler")
    assert "no C++ compiler" in compiler.missing_compiler.__wrapped__("cpu")


@pytest.mark.slow
def test_what_makes_no_library_is_compiled_for_this_process(monkeypatch):
    def refuse(*args):
        raise RuntimeError("no library\nof this")

    monkeypatch.setattr(compiler, "_build", refuse)
    graph, held = record(lambda x: (x.sin() + torch.rand(2),), [torch.rand(2)])
    state = torch.get_rng_state()
    run = compile_graph(graph, [torch.ones(2), *held], fallback_random=True)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.ones(2).sin() + torch.rand(2)
    torch.set_rng_state(state)
    torch.testing.assert_close(run([torch.ones(2), *held])[0], expected)
    monkeypatch.setattr(compiler, "_in_memory", refuse)
    with pytest.raises(CannotCompile, match=r"^RuntimeError: no library$"):
        compile_graph(graph, [torch.ones(2), *held])

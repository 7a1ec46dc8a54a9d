"""Compilation of recorded graphs by Inductor, kept on disk between processes."""

import hashlib
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import torch

from zoo.errors import ZooError

CACHE = "ZOO_CACHE"


class CannotCompile(ZooError):
    """A machine without a compiler, or a graph that Inductor refuses; the message says which."""


def compile_graph(graph, inputs, fallback_random=False):
    """A function of a list of tensors like `inputs` that returns the list of the graph's outputs.

    Inputs that the graph writes to are written in place.  fallback_random: draw what eager torch
    draws from the same random state.  No gradient passes the result.
    Raises CannotCompile.
    """
    reason = missing_compiler(inputs[0].device.type)
    if reason:
        raise CannotCompile(reason)
    inputs = [tensor.detach() for tensor in inputs]
    options = {"fallback_random": fallback_random}
    try:
        if inputs[0].is_cuda:
            return _in_memory(graph, inputs, options)
        return _load(_library(graph, inputs, options))
    except (RuntimeError, AssertionError, OSError, NotImplementedError) as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise CannotCompile(f"{type(error).__name__}: {line}") from error


@cache
def missing_compiler(kind):
    """Why this machine cannot compile for a kind of device ("cpu", "cuda"); "" where it can."""
    if kind == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton is missing"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return "" if shutil.which(get_cpp_compiler()) else "there is no C++ compiler"
    except Exception as error:
        return f"there is no C++ compiler ({type(error).__name__})"


def folder():
    """Where compiled graphs are kept: $ZOO_CACHE/compiled, else ~/.cache/latent-zoo/compiled."""
    base = os.environ.get(CACHE) or Path.home() / ".cache" / "latent-zoo"
    return Path(base) / "compiled"


def key(graph, inputs, options):
    """What tells a compiled graph from every other: its code, its inputs' layouts, the machine."""
    layouts = [(t.shape, t.stride(), t.dtype, t.device.type) for t in inputs]
    machine = torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    text = repr((graph.code, layouts, sorted(options.items()), machine))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_cached(graph, inputs, fallback_random=False):
    """Whether the graph was compiled before, for inputs like these on the CPU."""
    return _path(graph, inputs, {"fallback_random": fallback_random}).exists()


def _path(graph, inputs, options):
    return folder() / f"{key(graph, inputs, options)}.so"


def _library(graph, inputs, options):
    """The path of the shared library of a graph, compiled now where it was not before."""
    path = _path(graph, inputs, options)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = str(Path(place) / "step.so")
            with _without_input_checks():
                made = torch._inductor.aot_compile(
                    graph,
                    tuple(inputs),
                    options=options
                    | {"aot_inductor.package": False, "aot_inductor.output_path": target},
                )
            os.replace(made, path)
    return path


@contextmanager
def _without_input_checks():
    """Leave out code that compares every input's layout with the recorded one.

    It runs only where AOTI_RUNTIME_CHECK_INPUTS is set, and takes the compiler longer than all
    the rest.
    """
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    def empty(self):
        self.prefix.splice_aot(
            """
            static bool _check_aoti_runtime_check_inputs_env() { return false; }
            static void __check_inputs_outputs(AtenTensorHandle*, AtenTensorHandle*) {}
            """
        )

    with mock.patch.object(CppWrapperCpu, "generate_input_output_runtime_checks", empty):
        yield


def _load(path):
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
    return runner.run


def _in_memory(graph, inputs, options):
    """A GPU's kernels; Inductor and Triton keep their own caches on disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch._inductor.compile(graph, inputs, options=options)
    return lambda inputs: list(compiled(*inputs))

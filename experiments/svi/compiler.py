"""Compilation of recorded graphs by Inductor, kept on disk between processes.

On the CPU a graph becomes a shared library (ahead-of-time Inductor), a folder with its checksum in
the cache.  Where the library cannot be made or does not run, as for operations that need Python,
the graph is compiled for this process only.  A GPU's kernels stand in Inductor's own cache.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from unittest import mock

import torch

from experiments.svi.record import written_inputs
from zoo.errors import ZooError

CACHE = "ZOO_CACHE"
LIMIT = 2**30
"""Bytes of compiled graphs on disk; above it those used longest ago go."""
ABANDONED = 3600
"""Seconds after which a half-made entry is no one's."""
# No tables for debuggers: a quarter of the compiler's time.
PLAIN = {
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.enable_frame_pointer": False,
    "memory_planning": True,  # one block for all that a step makes on the way
}


class CannotCompile(ZooError):
    """A machine without a compiler, or a graph that Inductor refuses; the message says which."""


def compile_graph(graph, inputs, fallback_random=False):
    """A function of a list of tensors like `inputs` that returns the list of the graph's outputs.

    Inputs that the graph writes to are written in place.  fallback_random: draw what eager torch
    draws from the same random state.  No gradient passes the result.  It has run once when this
    returns, on copies of what it writes to and without a trace in torch's random state.
    Raises CannotCompile.
    """
    reason = missing_compiler(inputs[0].device.type)
    if reason:
        raise CannotCompile(reason)
    inputs = [tensor.detach() for tensor in inputs]
    options = {"fallback_random": fallback_random}
    ways = [_in_memory] if any(tensor.is_cuda for tensor in inputs) else [_library, _in_memory]
    for way in ways:
        try:
            with _quiet(), _types_told_once():
                return way(graph, inputs, options)
        except Exception as error:
            failure = error
    line = next(iter(str(failure).strip().splitlines()), "")
    raise CannotCompile(f"{type(failure).__name__}: {line}") from failure


@contextmanager
def _quiet():
    """Without Inductor's remarks on how it compiles."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


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
    machine = torch.__version__, _processor(), torch.get_num_threads()
    settings = torch.get_default_dtype(), *sorted((PLAIN | options).items())
    text = repr((graph.code, layouts, settings, machine))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_cached(graph, inputs, fallback_random=False):
    """Whether the graph was compiled before, for inputs like these on the CPU."""
    return _is_whole(_entry(graph, inputs, {"fallback_random": fallback_random}))


@cache
def _processor():
    """The instructions that compiled code may use: it takes all that this processor has."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("flags", "Features"))]
        return hashlib.sha256(lines[0].encode()).hexdigest()
    except (OSError, IndexError):
        return torch.backends.cpu.get_cpu_capability()


def _entry(graph, inputs, options):
    return folder() / key(graph, inputs, options)


def _library(graph, inputs, options):
    """The graph as a shared library, made now where the cache has none."""
    entry = _entry(graph, inputs, options)
    if _is_whole(entry):
        os.utime(entry)
        return _tried(_load(entry), graph, inputs)
    shutil.rmtree(entry, ignore_errors=True)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-") as place:
        new = _build(graph, inputs, options, Path(place))
        run = _tried(_load(new), graph, inputs)  # before others see it
        try:
            os.rename(new, entry)
        except OSError:  # another process made it meanwhile
            assert entry.exists()
    prune()
    return run


def _build(graph, inputs, options, place):
    """A new folder with the library and its checksum."""
    own = {"aot_inductor.package": False, "aot_inductor.output_path": str(place / "made/step.so")}
    with _without_input_checks():
        made = torch._inductor.aot_compile(
            deepcopy(graph), tuple(inputs), options=options | PLAIN | own
        )
    new = place / "new"
    new.mkdir()
    shutil.move(made, new / "step.so")
    for proxies in Path(made).parent.glob("*.wrapper.json"):  # operations without a C interface
        shutil.move(proxies, new / "step.json")
    (new / "sha256").write_text(_checksum(new))
    return new


@contextmanager
def _types_told_once():
    """Inductor's table of result types is made once, not for every operation: an eighth of all."""
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler as Types

    fill = Types.__init__
    with mock.patch.object(Types, "__init__", lambda self: None if vars(self) else fill(self)):
        yield


@contextmanager
def _without_input_checks():
    """Leave out code that compares every input's layout with the recorded one.

    It runs only where AOTI_RUNTIME_CHECK_INPUTS is set, and takes the compiler longer than all
    the rest of the wrapper.
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


def _checksum(entry):
    digest = hashlib.sha256()
    for path in sorted(entry.glob("step.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_whole(entry):
    """Whether an entry is there, with the content that was written: a damaged library crashes."""
    try:
        return (entry / "sha256").read_text() == _checksum(entry)
    except OSError:
        return False


def _load(entry):
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(entry / "step.so"), 1).run


def _in_memory(graph, inputs, options):
    """The graph compiled for this process."""
    compiled = torch._inductor.compile(deepcopy(graph), inputs, options=options)
    return _tried(lambda inputs: list(compiled(*inputs)), graph, inputs)


def _tried(run, graph, inputs):
    """`run`, after one call that leaves the inputs and the random state as they are."""
    written = written_inputs(graph)
    copies = [t.clone() if i in written else t for i, t in enumerate(inputs)]
    gpus = sorted({tensor.device.index for tensor in inputs if tensor.is_cuda})
    with torch.random.fork_rng(gpus), torch.no_grad():
        run(copies)
    return run


def prune():
    """Remove what killed processes left, and entries, the longest unused first, above LIMIT."""
    for half in folder().glob(".new-*"):
        with suppress(OSError):  # removed meanwhile
            if time.time() - half.stat().st_mtime > ABANDONED:
                shutil.rmtree(half, ignore_errors=True)
    entries = []
    for entry in folder().glob("[!.]*"):
        try:
            size = sum(path.stat().st_size for path in entry.iterdir())
            entries.append((entry.stat().st_mtime, size, entry))
        except OSError:  # removed meanwhile
            continue
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries)[:-1]:  # the newest stays, however large
        if total <= LIMIT:
            break
        shutil.rmtree(entry, ignore_errors=True)
        total -= size

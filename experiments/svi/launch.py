"""Taking a compiled step many times: a loop on the CPU, CUDA graphs on a GPU."""

import warnings

import torch

UNROLLED = 16
"""Steps in the longer of the two CUDA graphs: one launch for all of them."""


def repeated(step, device):
    """A function `run(count)` that takes a step so many times; the step reads its own tensors.

    On a GPU the step must have run before, so that all libraries are ready; it is captured once
    alone and once UNROLLED times.  Capturing takes no step.
    """

    def loop(count):
        for _ in range(count):
            step()

    if device.type != "cuda":
        return loop
    try:
        one, many = (captured(step, count) for count in (1, UNROLLED))
    except RuntimeError as error:
        torch.cuda.synchronize()
        reason = str(error).splitlines()[0]
        warnings.warn(f"no CUDA graph, steps are launched singly: {reason}", stacklevel=2)
        return loop

    def replay(count):
        for _ in range(count // UNROLLED):
            many.replay()
        for _ in range(count % UNROLLED):
            one.replay()

    return replay


def captured(step, count):
    """A CUDA graph of so many steps."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(count):
            step()
    return graph

"""Which device a run takes, and how much time and memory it took there."""

import resource
import time

import torch

from zoo.errors import ZooError, require


def resolve(device):
    """A torch device: "auto" is the CUDA GPU where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ZooError(f"unknown device {device!r}; known: auto, cpu, cuda, cuda:N") from error
    require(
        device.type in ("cpu", "cuda"), f"unknown device {device}; known: auto, cpu, cuda, cuda:N"
    )
    if device.type == "cuda":
        require(torch.cuda.is_available(), "device cuda asked for, but torch sees no CUDA GPU here")
        require(
            (device.index or 0) < torch.cuda.device_count(),
            f"device {device} asked for, but there are {torch.cuda.device_count()} CUDA GPUs",
        )
    return device


def name(device):
    """The device's name as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            models = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        return models[0]
    except (OSError, IndexError):
        return "CPU"


def wait_for(device):
    """Wait until a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device):
    """Seconds of a clock: on a CPU this thread's own, so that other programs matter little."""
    wait_for(device)
    return time.perf_counter() if device.type == "cuda" else time.thread_time()


def reset_peak_memory(device):
    """Begin to count a GPU's peak memory anew; a process on the CPU has one peak for its life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """The largest memory in bytes: of the GPU's tensors since it was reset, or of this process so
    far on the CPU, which other runs of the same process may have taken before."""
    if device.type == "cuda":
        return {"peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device)}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_process_memory_bytes": 1024 * kilobytes}

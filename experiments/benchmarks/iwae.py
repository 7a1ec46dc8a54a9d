"""Seconds and peak memory of the importance-weighted bound on binarized MNIST.

    python -m experiments.benchmarks.iwae [ROWS DRAWS] ...

A 784-200-200-20 VAE and encoder as built, whose cost is that of fitted ones.  Every pair of rows
and draws runs in a process of its own, so that one's peak is not another's.  Needs Linux and the
public data files in ZOO_DATA.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch

import guides
import zoo
from experiments.measure.evidence import iwae

PAIRS = [(1000, 500), (1000, 5000), (10_000, 100)]


def measure(num_rows, num_draws):
    """Seconds, CPU seconds, and peak MB of the process before and after the bound."""
    hidden = (200, 200)
    problem = zoo.load("vae", data="binarized_mnist", latent_dim=20, hidden=hidden)
    guide = guides.build("amortized", problem, hidden=hidden)
    Path("/proc/self/clear_refs").write_text("5")  # loading the data is no part of the peak
    before, start, used = _peak(), time.perf_counter(), time.process_time()
    iwae(problem, guide, problem.data.test[:num_rows], num_draws)
    return time.perf_counter() - start, time.process_time() - used, before, _peak()


def _peak():
    """Peak resident MB since the last reset, as Linux keeps it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(arguments):
    if arguments[:1] == ["--one"]:
        print(*(f"{value:.1f}" for value in measure(*map(int, arguments[1:]))))
        return
    numbers = list(map(int, arguments))
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True)) or PAIRS
    print(f"{torch.get_num_threads()} threads\n rows  draws  seconds  cpu s  MB before  MB peak")
    for rows, draws in pairs:
        command = [sys.executable, "-m", __spec__.name, "--one", str(rows), str(draws)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print("{:5} {:6} {:>8} {:>6} {:>10} {:>8}".format(rows, draws, *found))


if __name__ == "__main__":
    main(sys.argv[1:])

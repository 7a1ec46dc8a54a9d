"""One group of entries in a process of its own: python -m experiments.benchmarks.worker SPEC OUT.

On the CPU the process is held to one core before any library starts its threads, so that JAX,
which has no setting for all of them, has one thread's worth of time like the others.
"""

import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def environment(device, cache=None):
    """The variables a worker needs from before its start; cache: a folder for compiled code."""
    own = SETTINGS | ({} if cache is None else caches(cache))
    return os.environ | own | ({"JAX_PLATFORMS": "cpu"} if device == "cpu" else {})


def caches(folder):
    """The variables that put all compiled code of a process under a folder."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder), "ZOO_CACHE": str(folder)}


def hold_to_one_core(place=0):
    """Let this process run on one core only, where the system can; which one, or None.

    place: counted from the last of those it may take.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = sorted(os.sched_getaffinity(0))[-1 - place]
    os.sched_setaffinity(0, {core})
    return core


def main(spec_path, out_path):
    """Time the entries that the file SPEC lists, and write rows and limits to OUT."""
    spec = json.loads(Path(spec_path).read_text())
    device = spec["entries"][0]["case"]["device"]
    core = hold_to_one_core(spec.get("core", 0)) if device == "cpu" else None
    import torch

    from experiments.benchmarks import contenders, limit, timing

    torch.set_num_threads(1)
    entries = [
        timing.Entry(timing.Row(**entry, milliseconds=[]).case, entry["contender"])
        for entry in spec["entries"]
    ]
    rate = limit.rate(device)
    rows = timing.measure(entries, contenders.prepare, spec["rounds"], spec["seconds"])
    first = entries[0].case
    found = {
        "rows": [row.record() for row in rows],
        "operations_per_second": rate,
        "limit_milliseconds": 1000 * limit.operations(first) / rate,
        "core": core,
    }
    Path(out_path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

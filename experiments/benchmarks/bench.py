"""`bench`: time every contender on every case, and write tables, figures and checks."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from experiments import records
from experiments.benchmarks import bounds, cases, contenders, figures, worker
from experiments.benchmarks.report import report
from experiments.benchmarks.timing import Row
from experiments.svi import checkpoint
from experiments.svi import device as devices
from experiments.svi.fit import prepare as prepare_folder
from zoo.errors import ZooError, require

PACKAGES = ("numpyro", "jax", "jaxlib")
QUICK_COUNTS = (1000, 100_000)


@dataclass(frozen=True)
class Effort:
    """How much is spent: rounds, seconds that fill a block of steps, seconds of all groups."""

    rounds: int
    seconds: float
    total: float | None


FULL = Effort(15, 0.1, None)
QUICK = Effort(5, 0.02, 105.0)


@dataclass(frozen=True)
class Bench:
    """What a run left: its page, its checks, and everything else that bench.json holds."""

    page: str
    checks: list
    result: dict

    @property
    def ok(self):
        """Whether every check passed that this run could make: --quick leaves some out."""
        bad = ("MISS",) if self.result["quick"] else ("MISS", "not measured")
        passed = any(check.status == "pass" for check in self.checks)
        return passed and not any(check.status in bad for check in self.checks)


def bench(
    out="runs/bench", quick=False, check=False, device="auto", names=(), at_once=1, say=print
):
    """Time the contenders; write OUT/bench.md, OUT/bench.json and OUT/figures/*.png.

    quick: fewer cases, contenders and rounds.  check: time `zoo compare` as well, which only the
    checks need.  names: parts of the names of cases, all where empty.  at_once: cases timed at the
    same time, each on a core of its own.  say: told what goes on.
    Raises ZooError, before anything is written, for bad arguments.
    """
    device, folder = devices.resolve(device).type, Path(out)
    most = len(os.sched_getaffinity(0)) if device == "cpu" and not quick else 1
    require(1 <= at_once <= most, f"at-once must be from 1 to {most} here, got {at_once}")
    groups = plan(quick, device, names)
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; name a folder")
    prepare_folder(folder)
    if not contenders.has_numpyro():
        say(f"{contenders.NO_JAX}; the NumPyro rows are left out")
    result = {
        "quick": quick,
        "rounds": (QUICK if quick else FULL).rounds,
        "cache": "as found" if quick else "empty at the start",
        "environment": environment(device),
        "at_once": at_once,
        "base": [],
        "tables": None,
        "skipped": _not_here(quick),
    }
    seconds = None
    with tempfile.TemporaryDirectory() as scratch, _empty_cache(quick) as cache:
        time_groups(groups, result, worker.environment(device, cache), Path(scratch), say)
        if check and not quick and not names and device == "cpu":
            say("zoo compare")
            seconds = time_compare(Path(scratch), result["skipped"])
    timed = {bounds.Table(group).case.name for group in result["base"]}
    lost = [name for name in groups if name not in timed and name != "tables"]
    result["checks"] = bounds.checks(
        result["base"], result["tables"], seconds, device, lost, whole=not names
    )
    return write(folder, result)


def plan(quick, device, names=()):
    """{name: entries} of every group, in the order in which they run."""
    chosen = cases.choose(names) if names else cases.quick_cases() if quick else cases.base_cases()
    found = {}
    if not names:
        counts = QUICK_COUNTS if quick else cases.COUNTS
        tables = [replace(case, device=device) for case in cases.table_cases(counts)]
        found["tables"] = contenders.of_tables(tables, quick)
    chosen = [replace(case, device=device) for case in chosen]
    return found | {case.name: contenders.of_case(case, quick) for case in chosen}


def time_groups(groups, result, environment, scratch, say):
    """Run every group in a process of its own, and add what it found to the result.

    A group whose process dies or has no more time is listed, and the others go on.
    Raises ZooError where that leaves none.
    """
    effort, started = QUICK if result["quick"] else FULL, time.monotonic()
    cores = queue.SimpleQueue()
    for core in range(result["at_once"]):
        cores.put(core)

    def found(name, entries):
        core = cores.get()
        say(f"{list(groups).index(name) + 1}/{len(groups)} {name}")
        left = None if effort.total is None else effort.total - (time.monotonic() - started)
        try:
            return time_group(entries, effort, environment, scratch, core, left)
        except subprocess.TimeoutExpired:
            return f"{name}: --quick has no more time"
        except ZooError as error:
            return f"{name}: {error}"
        finally:
            cores.put(core)

    with ThreadPoolExecutor(result["at_once"]) as pool:
        groups_found = list(pool.map(found, groups, groups.values()))
    for name, group in zip(groups, groups_found, strict=True):
        if isinstance(group, str):
            result["skipped"].append(group)
        elif name == "tables":
            result["tables"] = group
        else:
            result["base"].append(group)
    some = result["base"] or result["tables"]
    require(some, f"nothing could be timed; {'; '.join(result['skipped'][-2:])}")


def time_group(entries, effort, environment, scratch, core=0, left=None):
    """What a worker found: rows, operations_per_second, limit_milliseconds, core.

    core: which of this process's cores it takes, counted from the last.  left: seconds until
    subprocess.TimeoutExpired.  Raises ZooError where the worker dies.
    """
    spec, out = scratch / f"spec-{core}.json", scratch / f"out-{core}.json"
    out.unlink(missing_ok=True)
    described = [{"case": asdict(e.case), "contender": e.contender} for e in entries]
    task = {"rounds": effort.rounds, "seconds": effort.seconds, "core": core}
    spec.write_text(json.dumps(task | {"entries": described}))
    command = [sys.executable, "-m", worker.__name__, str(spec), str(out)]
    left = None if left is None else max(left, 0)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left)
    require(done.returncode == 0 and out.exists(), _why(done, entries))
    group = json.loads(out.read_text())
    group["rows"] = [Row(**row) for row in group["rows"]]
    return group


def _why(done, entries):
    """Why a worker left nothing, on one line."""
    last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return f"the process that timed {entries[0].case.name} ended with {done.returncode}: {last[0]}"


def time_compare(scratch, skipped):
    """Seconds of `zoo compare` as it is, from an empty compilation cache and folder.

    None where it fails, with a line for what was skipped.
    """
    command = [sys.executable, "-m", "experiments.cli", "compare", "--out", str(scratch / "card")]
    own = os.environ | worker.caches(scratch / "compare-cache")
    started = time.perf_counter()
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    if done.returncode != 0:
        skipped.append(f"zoo compare: it ended with {done.returncode}")
        return None
    return time.perf_counter() - started


def environment(device):
    """Commit, versions, device, threads and command of the run."""
    found = dict(records.environment(devices.name(torch.device(device))))
    extra = {package: _version(package) for package in PACKAGES}
    return found | {
        "versions": found["versions"] | extra,
        "threads": 1,
        "device_type": device,
    }


def write(folder, result):
    """Write page, JSON and figures; returns the Bench."""
    page = report(result)
    plain = result | {"checks": [asdict(c) | {"status": c.status} for c in result["checks"]]}
    text = json.dumps(plain, indent=1, default=Row.record, allow_nan=False)
    checkpoint.write_bytes(folder / "bench.json", text.encode())
    checkpoint.write_bytes(folder / "bench.md", page.encode())
    figures.draw(folder / "figures", result)
    return Bench(page, result["checks"], result)


def _empty_cache(quick):
    """A folder for Inductor that is empty at the start; --quick takes the user's own."""
    return nullcontext() if quick else tempfile.TemporaryDirectory()


def _not_here(quick):
    """What the run leaves out from the start, in words."""
    found = [] if contenders.has_numpyro() else [f"the NumPyro rows: {contenders.NO_JAX}"]
    if quick:
        found.append("most cases and contenders, and zoo compare: --quick")
    return found


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None

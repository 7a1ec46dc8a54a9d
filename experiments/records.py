"""Records: one JSON line a run, appended whole; a line cut short by a crash is dropped."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from zoo.errors import ZooError

PACKAGES = ("torch", "pyro-ppl", "numpy", "arviz", "latent-zoo")


def read(path):
    """The records in a file, in order; none where there is no file.

    A last line without its end is what a killed writer left: it is cut off the file.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    try:
        found = [json.loads(line) for line in whole.splitlines()]
        for record in found:
            record["config"], record["status"], record["label"], record["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is no file of records: {error}") from error
    return found


def append(path, record):
    """Add a record to a file, and see it on the disk."""
    line = json.dumps(finite(record), sort_keys=True) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def key(record):
    """What makes a run itself: its resolved config, as text."""
    return json.dumps(record["config"], sort_keys=True)


@cache
def environment(device_name):
    """Commit, versions and device of this process."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "device": device_name,
        "threads": torch.get_num_threads(),
        "command": _command(),
    }


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _command():
    """The command that this process runs, as its user typed it; None for any other program."""
    name = Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]]) if name == "zoo" else None


def _git(*arguments):
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def finite(value):
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

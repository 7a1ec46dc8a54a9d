"""Checkpoints: one safetensors file with JSON in its header, replaced in one step.

Parameters, optimizer, random state and losses are tensors; step and config are JSON.  Both stand
in one file, so that they can never disagree.  Nothing is ever unpickled.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from zoo.errors import ZooError


def write(path, tensors, facts):
    """Write tensors (a dict) and facts (JSON) to `path`: whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(tensors, metadata={"json": json.dumps(facts)}))


def write_bytes(path, content):
    """Write bytes to `path` so that a reader sees the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path):
    """(tensors, facts) of a checkpoint.

    Raises ZooError, in one line, for a missing, truncated or alien file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["json"])
            _check(tensors := {n: file.get_tensor(n) for n in file.keys()}, facts)  # noqa: SIM118
            return tensors, facts
    except FileNotFoundError as error:
        raise ZooError(f"no checkpoint at {path}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ZooError(
            f"{path} is no checkpoint of this project, or truncated: {reason}"
        ) from error


def _check(tensors, facts):
    """Raise KeyError or TypeError unless this is what a run writes."""
    for name in ("losses", "seconds", "order", "random"):
        tensors[name]
    for name in ("seed", "step", "config", "problem", "flats", "finished"):
        facts[name]


def part(tensors, prefix):
    """The tensors whose name starts with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

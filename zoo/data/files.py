"""Public files: fetched through pooch, checked by hash, never half-written."""

import logging
import os
import stat
from importlib import resources
from pathlib import Path

import pooch

from zoo.errors import ZooError

pooch.get_logger().setLevel(logging.WARNING)


def registry():
    """File name -> (sha256, address) of every public file."""
    lines = resources.files("zoo.data").joinpath("registry.txt").read_text().splitlines()
    return {name: (sha256, url) for name, sha256, url in map(str.split, lines)}


def folder():
    """Where the public files are kept: ZOO_DATA if set, else the user's cache folder."""
    return Path(os.environ.get("ZOO_DATA") or pooch.os_cache("latent-zoo"))


def prepared_folder():
    """Where prepared forms are kept: beside the public files, or the user's cache where those
    are read-only."""
    home = folder()
    if home.exists() and not home.stat().st_mode & stat.S_IWUSR:
        home = Path(pooch.os_cache("latent-zoo"))
    return home / "prepared"


def fetch(name):
    """Path of a public file whose hash is right.

    Raises ZooError, in one line, where the file is damaged, or missing and not to be had.
    """
    expected, url = registry()[name]
    path = folder() / name
    if path.exists():
        found = pooch.file_hash(str(path))
        if found != expected:
            raise ZooError(
                f"{path} is damaged: expected sha256 {expected}, found {found}; "
                f"delete it and fetch it again from {url}"
            )
        return path
    _download(url, path, expected)
    return path


def _download(url, path, expected):
    """Fetch to a name of its own, and move it to `path` once its hash is right."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    means = (
        f"fetch {url} into {path.parent}, or point ZOO_DATA at a folder that holds {path.name} "
        f"(sha256 {expected})"
    )
    try:
        pooch.retrieve(url, None, fname=part.name, path=path.parent)
        found = pooch.file_hash(str(part))
        if found != expected:
            raise ZooError(
                f"{path} was fetched with a wrong hash: expected sha256 {expected}, "
                f"found {found}; {means}"
            )
        os.replace(part, path)
    except ZooError:
        raise
    except Exception as error:
        reason = type(error).__name__
        raise ZooError(
            f"{path} is missing (expected sha256 {expected}, found nothing) and could not be "
            f"fetched ({reason}); {means}"
        ) from error
    finally:
        part.unlink(missing_ok=True)

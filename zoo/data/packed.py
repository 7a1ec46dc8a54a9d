"""The prepared form of a set: arrays in one .npz file, binary ones as packed bits."""

import os
import zipfile

import numpy as np


def save(path, arrays):
    """Write named arrays to `path` in one step: it is whole or it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {}
    for name, array in arrays.items():
        binary = array.dtype == np.bool_
        packed[f"{name}:{'bits' if binary else 'plain'}"] = (
            np.packbits(array, axis=1) if binary else array
        )
        packed[f"{name}:shape"] = np.array(array.shape)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **packed)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path):
    """The arrays that `save` wrote, or None where there is no readable file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {
                key.removesuffix(":shape"): _unpack(file, key.removesuffix(":shape"))
                for key in file.files
                if key.endswith(":shape")
            }
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _unpack(file, name):
    shape = tuple(file[f"{name}:shape"])
    if f"{name}:bits" not in file.files:
        return file[f"{name}:plain"].reshape(shape)
    return np.unpackbits(file[f"{name}:bits"], axis=1, count=shape[1]).view(bool)

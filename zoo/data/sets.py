"""The sets themselves: where each comes from and how its files become rows."""

import gzip
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from zoo.data import files, packed
from zoo.data.dataset import DataSet
from zoo.errors import ZooError, unknown

_UCI = "none stated for the prepared files; plants and dna come from UCI (CC BY 4.0)"
_DEBD = "https://github.com/UCLA-StarAI/Density-Estimation-Datasets"


def names():
    """Sorted names of the sets."""
    return sorted(_SETS)


@cache
def load(name):
    """The set of that name, values in [0, 1].

    Raises ZooError for an unknown name, or where its files are missing or damaged.
    """
    if name not in _SETS:
        raise unknown("data set", name, names())
    return _SETS[name]()


def public_files(name):
    """Names of the public files that a set is made from; none for an embedded one."""
    return _FILES.get(name, [])


def _digits():
    """1,797 handwritten digits of 8 x 8 pixels, shuffled once; the last quarter is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.data))
    pixels = torch.tensor(bunch.data[order] / 16, dtype=torch.float32)
    labels = torch.tensor(bunch.target[order])
    return DataSet(
        "digits",
        pixels[:1347],
        pixels[1347:],
        train_labels=labels[:1347],
        test_labels=labels[1347:],
        image_shape=(8, 8),
        licence="CC BY 4.0",
        source="UCI, Optical Recognition of Handwritten Digits, as shipped by scikit-learn",
    )


def _prepared(name, prepare):
    """The arrays of a set: from the prepared file, or made from its public files."""
    hashes = "-".join(files.registry()[file][0][:6] for file in _FILES[name])
    path = files.prepared_folder() / f"{name}-{hashes}.npz"
    arrays = packed.load(path)
    if arrays is None:
        arrays = prepare(*(files.fetch(file) for file in _FILES[name]))
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            packed.save(path, arrays)
    return arrays


def _text_set(name, width, **known):
    """A set whose three files hold rows of 0 and 1 in text."""

    def prepare(*paths):
        return {part: _read_text(path, width) for part, path in zip(_PARTS, paths, strict=True)}

    arrays = _prepared(name, prepare)
    return DataSet(name, **{k: torch.from_numpy(v).float() for k, v in arrays.items()}, **known)


def _read_text(path, width):
    """Rows of 0 and 1, whatever stands between them: (n, width) bool."""
    characters = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    is_digit = (characters == ord("0")) | (characters == ord("1"))
    digits = characters[is_digit]
    others = set(np.unique(characters).tolist()) - set(b"01, \r\n")
    ends = is_digit.cumsum()[characters == ord("\n")]
    if others or len(digits) % width or (ends % width).any():
        raise ZooError(f"{path} is malformed: expected rows of {width} values 0 or 1")
    return (digits == ord("1")).reshape(-1, width)


def _mnist():
    def prepare(train, train_labels, test, test_labels):
        return {
            "train": _read_idx(train).reshape(-1, 784),
            "test": _read_idx(test).reshape(-1, 784),
            "train_labels": _read_idx(train_labels),
            "test_labels": _read_idx(test_labels),
        }

    arrays = {k: torch.from_numpy(v) for k, v in _prepared("mnist", prepare).items()}
    pixels = {part: arrays[part].float() / 255 for part in ("train", "test")}
    labels = {f"{part}_labels": arrays[f"{part}_labels"].long() for part in ("train", "test")}
    return DataSet(
        "mnist",
        **pixels,
        **labels,
        image_shape=(28, 28),
        licence="usually given as CC BY-SA 3.0",
        source="LeCun, Cortes and Burges, the MNIST database of handwritten digits",
    )


def _halved(name):
    """Binary images at half the size: a pixel is 1 where two of its 2 x 2 block are, or more."""
    whole = load(name)
    height, width = (side // 2 for side in whole.image_shape)

    def halve(rows):
        ones = rows.reshape(-1, height, 2, width, 2).sum((2, 4))
        return (ones >= 2).to(rows.dtype).flatten(1)

    shape = (height, width)
    return replace(whole.map(halve), name=f"{name}_{width}", image_shape=shape)


def _read_idx(path):
    """The array in a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, dtype=">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()


_PARTS = ("train", "valid", "test")
_FILES = {
    name: [f"{name}.{part}.data" for part in _PARTS] for name in ("nltcs", "plants", "dna")
} | {
    "binarized_mnist": [f"binarized_mnist_{part}.amat" for part in _PARTS],
    "binarized_mnist_14": [f"binarized_mnist_{part}.amat" for part in _PARTS],
    "mnist": [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ],
}
_SETS = {
    "digits": _digits,
    "mnist": _mnist,
    "binarized_mnist": lambda: _text_set(
        "binarized_mnist",
        784,
        image_shape=(28, 28),
        licence="derived from MNIST",
        source="Larochelle and Murray 2011, the static binarization of MNIST",
    ),
    "binarized_mnist_14": lambda: _halved("binarized_mnist"),
    "nltcs": lambda: _text_set("nltcs", 16, licence=_UCI, source=_DEBD),
    "plants": lambda: _text_set("plants", 69, licence=_UCI, source=_DEBD),
    "dna": lambda: _text_set("dna", 180, licence=_UCI, source=_DEBD),
}

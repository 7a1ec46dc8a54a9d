"""Data sets: `names()`, `load(name)`; public files by hash, the default one embedded."""

from zoo.data.dataset import DataSet, as_dataset, check_latent_dim
from zoo.data.sets import load, names

__all__ = ["DataSet", "as_dataset", "check_latent_dim", "load", "names"]

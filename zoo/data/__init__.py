"""Data sets: `names()`, `load(name)`; public files by hash, the default one embedded."""

from zoo.data.dataset import DataSet, check_latent_dim
from zoo.data.given import as_dataset
from zoo.data.sets import load, names

__all__ = ["DataSet", "as_dataset", "check_latent_dim", "load", "names"]

"""A zoo of latent variable models in Pyro, each of which knows its own truth.

`names()` lists the models, `load(name, **options)` makes a problem: a model, its data, and what
is known of the answer.
"""

from pathlib import Path

from zoo.errors import TruthUnavailable, ZooError, require
from zoo.problem import Latent, Problem, Truth, datum, unique
from zoo.registry import Registry

__all__ = [
    "Latent",
    "Problem",
    "Truth",
    "TruthUnavailable",
    "ZooError",
    "build_function",
    "datum",
    "load",
    "names",
    "register",
    "stands_in",
    "unique",
]

_registry = Registry("model", __name__)
register = _registry.register


def names():
    """Sorted names of the registered models."""
    return _registry.names()


def load(name, **options):
    """The problem of a registered model, or of a Python file that registers one.

    Raises ZooError for an unknown model or option, or for data that do not suit the model.
    """
    build = _registry.find(name)
    options = _registry.resolve(Path(name).stem, build, options)
    problem = build(**options)
    require(isinstance(problem, Problem), f"{Path(name).stem}: build must return a zoo.Problem")
    return problem.having(name=Path(name).stem, options=options)


def build_function(name):
    """The function that builds the problem of that name."""
    return _registry.find(name)


def stands_in(name):
    """Whether `name` is the path of a Python file that has been loaded and registers a model."""
    return _registry.has_loaded(name)

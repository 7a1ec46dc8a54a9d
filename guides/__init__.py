"""Guides: a family times a source of its parameters, built from a problem's latents.

`names()` lists them, `build(name, problem, **options)` makes a Pyro guide that is usable with
`pyro.infer.SVI` as it is.
"""

from zoo.registry import Registry

__all__ = ["build", "names", "register"]

_registry = Registry("guide", __name__)
register = _registry.register


def names():
    """Sorted names of the registered guides."""
    return _registry.names()


def build(name, problem, **options):
    """The guide of that name for a problem.

    Raises ZooError for an unknown guide or option, or latents that the guide does not suit.
    """
    make = _registry.find(name)
    return make(problem, **_registry.resolve(name, make, options, skip=1))


def resolve(name, options):
    """The guide's options with its defaults written out."""
    return _registry.resolve(name, _registry.find(name), options, skip=1)


def build_function(name):
    """The function that builds the guide of that name."""
    return _registry.find(name)


def stands_in(name):
    """Whether `name` is the path of a Python file that has been loaded and registers a guide."""
    return _registry.has_loaded(name)

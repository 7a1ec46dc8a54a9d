"""Studies: a claim of the source texts each, measured by one command on real data.

A study is a file here that registers a `Study`; its name is the file's.
"""

from zoo.registry import Registry

_registry = Registry("study", "experiments.studies")
register = _registry.register
names = _registry.names


def load(name):
    """The `Study` of that name, or of a Python file that registers one.

    Raises ZooError for an unknown name.
    """
    return _registry.find(name)()


__all__ = ["load", "names", "register"]

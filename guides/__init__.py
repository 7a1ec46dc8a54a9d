"""Guides: a family times a source of its parameters, built from a problem's latents.

`names()` lists them, `build(name, problem, **options)` makes a Pyro guide that is usable with
`pyro.infer.SVI` as it is.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch

from guides.unsuited import Unsuited
from zoo.problem import require_problem
from zoo.registry import Registry

__all__ = ["build", "names", "register", "suiting"]

FEW = 100  # rows on which guides are tried

_registry = Registry("guide", __name__)
register = _registry.register
_trying = ContextVar("trying", default=False)  # whether a build under way will say what suits


def names():
    """Sorted names of the registered guides."""
    return _registry.names()


def build(name, problem, **options):
    """The guide of that name for a problem.

    Raises ZooError for an unknown guide or option, or latents that the guide does not suit, and
    then says which guides do.
    """
    if _trying.get():
        return _built(name, problem, options)
    try:
        with without_advice():
            return _built(name, problem, options)
    except Unsuited as refusal:
        others = [other for other in suiting(problem) if other != name]
        advice = f"guides that suit: {', '.join(others)}" if others else "no registered guide does"
        raise type(refusal)(f"{refusal}; {advice}") from refusal


def suiting(problem, serves=lambda guide: True):
    """Sorted names of the registered guides that can be built for a problem, as they are tried.

    serves: what else a guide so built must be.  torch's random stream is as it was.
    """
    if not problem.joint:  # a few rows tell it as well, and tables of them are small
        data = replace(problem.data, train=problem.data.train[:FEW])
        problem = problem.having(data=data)
    with without_advice(), torch.random.fork_rng(devices=[]):
        return [name for name in names() if _suits(name, problem, serves)]


def _suits(name, problem, serves):
    try:
        return serves(build(name, problem))
    except Exception:  # also what a guide does not foresee: one that breaks is no advice
        return False


def _built(name, problem, options):
    make = _registry.find(name)
    require_problem("a guide", problem)
    return make(problem, **_registry.resolve(name, make, options, skip=1))


@contextmanager
def without_advice():
    """Inside, refusals say nothing of other guides: to find those, each would try them all."""
    token = _trying.set(True)
    try:
        yield
    finally:
        _trying.reset(token)


def resolve(name, options):
    """The guide's options with its defaults written out."""
    return _registry.resolve(name, _registry.find(name), options, skip=1)


def build_function(name):
    """The function that builds the guide of that name."""
    return _registry.find(name)


def stands_in(name):
    """Whether `name` is the path of a Python file that has been loaded and registers a guide."""
    return _registry.has_loaded(name)

"""What models promise beside the conformance checks, and the registry of the zoo."""

import inspect
import itertools
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine

import zoo


def test_log_joint_is_written_independently_of_the_model(problem):
    source = inspect.getsource(problem.log_joint)
    assert not any(word in source for word in ("pyro.", "poutine", "dist.", "forward", "model("))


def test_reset_draws_new_parameters_by_seed(problem):
    """Those that a model has: one without is equal to itself, whatever the seed.

    A model without latents may start at one point always: it has no symmetry to break.
    """
    from experiments.svi.run import reset

    values = []
    for seed in (1, 2, 1):
        pyro.set_rng_seed(seed)
        reset(problem.model)
        values.append([p.detach().clone() for p in problem.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[2], strict=True))
    same = all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))
    assert same == (not values[0]) or not problem.latents


def test_zoo_holds_exactly_its_model_files():
    """A file of zoo/ is a model if and only if it registers one."""
    found = {
        path.stem
        for path in Path(zoo.__file__).parent.glob("*.py")
        if "@zoo.register" in path.read_text()
    }
    assert set(zoo.names()) == found


def test_duplicate_name_is_refused(tmp_path):
    before = zoo.names()
    path = tmp_path / "vae.py"
    path.write_text("import zoo\n@zoo.register\ndef build():\n    return None\n")
    with pytest.raises(zoo.ZooError, match="registered twice"):
        zoo.load(str(path))
    other = tmp_path / "mine.py"
    other.write_text("import zoo\n@zoo.register\ndef build():\n    return zoo.load('vae')\n")
    assert zoo.load(str(other)).name == "mine"
    assert zoo.names() == before


def test_listing_the_zoo_builds_nothing(monkeypatch):
    from zoo.data import sets

    monkeypatch.setattr(sets, "_SETS", dict.fromkeys(sets._SETS, pytest.fail))
    assert "vae" in zoo.names()


def test_two_problems_share_nothing():
    """Raw Pyro, global store: two problems of one model keep their own parameters."""
    one, two = zoo.load("gaussian_lvm"), zoo.load("gaussian_lvm")
    x = one.data.train[:3]
    for problem in (one, two):
        poutine.trace(problem.model).get_trace(x)
    names = list(pyro.get_param_store().keys())
    assert len(names) == len(set(names)) == 6
    pointers = [p.data_ptr() for q in (one, two) for p in q.model.parameters()]
    assert all(a != b for a, b in itertools.combinations(pointers, 2))

"""Every registered model against its second density, its docstring and its own promises."""

import inspect
import itertools
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine

import zoo
from zoo.problem import sample_sites

SECTIONS = ("Story:", "Data:", "Truth:", "Differs from the source in:", "Raises:", "Source:")


def model_trace(problem, x=None, index=None, latents=None):
    """A trace of the problem's model, its latents at given values."""
    with pyro.get_param_store().scope(), torch.no_grad():
        model = poutine.condition(problem.model, latents) if latents else problem.model
        trace = poutine.trace(model).get_trace(x, index)
    trace.compute_log_prob()
    return trace


def test_density_equals_log_joint_at_prior_draws(problem, double):
    x = problem.data.test[:7].double()
    model = problem.model.double()
    for seed in range(3):
        pyro.set_rng_seed(seed)
        trace = model_trace(problem, x)
        latents = {latent.name: trace.nodes[latent.name]["value"] for latent in problem.latents}
        ours = problem.log_joint(model, x, **latents)
        theirs = sum(site["log_prob"] for site in sample_sites(trace))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_log_joint_is_written_independently_of_the_model(problem):
    source = inspect.getsource(problem.log_joint)
    assert not any(word in source for word in ("pyro.", "poutine", "dist.", "forward", "model("))


def test_runs_without_data_and_leaves_its_inputs_alone(problem):
    assert len(model_trace(problem).nodes["x"]["value"]) == 1
    x = problem.data.train[:5]
    before = x.clone()
    model_trace(problem, x)
    assert torch.equal(x, before)


def test_minibatch_is_scaled_to_all_data(problem):
    """The mean over all minibatches of one row is the density of all rows, latents held."""
    x = problem.data.train[:6]
    latents = {n.name: model_trace(problem, x).nodes[n.name]["value"] for n in problem.latents}
    whole = model_trace(problem, x, latents=latents).log_prob_sum()
    parts = [
        model_trace(
            problem, x, torch.tensor([i]), {name: value[[i]] for name, value in latents.items()}
        ).log_prob_sum()
        for i in range(6)
    ]
    torch.testing.assert_close(sum(parts) / 6, whole, rtol=1e-5, atol=1e-4)


def test_docstring_has_its_sections(problem):
    text = inspect.getdoc(sys.modules[type(problem.model).__module__])
    places = [text.find(section) for section in SECTIONS]
    assert all(place > 0 for place in places)
    assert places == sorted(places)


def test_reset_draws_new_parameters_by_seed(problem):
    from experiments.svi.run import reset

    values = []
    for seed in (1, 2, 1):
        pyro.set_rng_seed(seed)
        reset(problem.model)
        values.append([p.detach().clone() for p in problem.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))


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

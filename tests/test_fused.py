"""The fused step, as recorded, takes the steps that Pyro's SVI takes on the same noise."""

import legit
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from registered import RECORDABLE, SMALL, by_gradients, first_rows
from steps import assert_close, parameters, started, train, train_eagerly

import guides
import zoo

pytestmark = pytest.mark.usefixtures("uncompiled", "double")


def in_double(name, num_data=15):
    """A registered problem in float64 on its first rows."""
    data = first_rows(zoo.load(name).data, num_data)
    problem = zoo.load(name, data=data.map(torch.Tensor.double))
    problem.model.double()
    return problem


def pair(name="gaussian_lvm", guide_name="mean_field"):
    problem = in_double(name)
    return problem, guides.build(guide_name, problem, **SMALL.get(guide_name, {})).double()


def assert_steps_are_those_of_svi(problem, guide, seeds=(3,), **settings):
    """Parameters, moments and losses after five steps of each seed."""
    settings = {"steps": 5, "batch_size": 4} | settings
    ours = train(started(problem, guide, seeds, **settings), problem)
    for run, theirs in zip(ours, started(problem, guide, seeds, **settings), strict=True):
        assert run.error is None
        assert run.engine["engine"] == "compiled"
        before = parameters(theirs)
        assert_close(run, train_eagerly(theirs, problem))
        assert any(not torch.equal(v, parameters(run).get(n)) for n, v in before.items())


@pytest.mark.parametrize(("name", "guide_name"), RECORDABLE)
def test_every_pair(name, guide_name):
    """Minibatches and all rows by turns: every guide has models of both."""
    batch_size = (4, None)[RECORDABLE.index((name, guide_name)) % 2]
    problem, guide = pair(name, guide_name)
    settings = by_gradients(problem)
    assert_steps_are_those_of_svi(problem, guide, batch_size=batch_size, **settings)


def test_orders_of_two_epochs_at_a_time(monkeypatch):
    """Ten steps of three an epoch: into a second block of orders."""
    monkeypatch.setattr("experiments.svi.stacked.ORDERED", 2 * 15)
    assert_steps_are_those_of_svi(*pair(), seeds=(3, 4), steps=10)


@pytest.mark.parametrize("guide_name", ["mean_field", "amortized", "constant"])
@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "score", "num_particles": 4},
        {"estimator": "enumeration", "num_particles": 4},
        {"estimator": "score", "num_particles": 2, "batch_size": None},
    ],
    ids=["score", "enumeration", "all rows"],
)
def test_discrete_latents(guide_name, settings):
    assert_steps_are_those_of_svi(*pair("bernoulli_mixture", guide_name), seeds=(3, 4), **settings)


@pytest.mark.parametrize(
    ("name", "guide_name", "estimator"),
    [
        ("gaussian_lvm", "mean_field", "pathwise"),
        ("vae", "amortized", "pathwise"),
        ("gaussian_lvm", "amortized", "score"),
        ("eight_schools", "mean_field", "pathwise"),
    ],
)
def test_several_particles(name, guide_name, estimator):
    settings = {"num_particles": 4, "estimator": estimator}
    assert_steps_are_those_of_svi(*pair(name, guide_name), **settings)


@pytest.mark.parametrize("guide_name", ["mean_field", "amortized"])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "weight_decay": 0.5},
        {"optimizer": "sgd", "learning_rate": 1e-3, "row_learning_rate": 1e-2},
        {"clip_norm": 0.5},
        {"optimizer": "sgd", "clip_norm": 0.5, "batch_size": None},
        {"schedule": "cosine", "decay": 0.3},
        {"optimizer": "adamw", "clip_norm": 2.0, "schedule": "cosine", "batch_size": None},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_optimizers_and_schedules(guide_name, settings):
    assert_steps_are_those_of_svi(*pair("gaussian_lvm", guide_name), seeds=(3, 4), **settings)


def with_param_and_module():
    """A problem of a plain function with `pyro.param` and `pyro.module`, and such a guide."""
    decoder, encoder = torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)

    def model(x=None, index=None):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", lambda: torch.rand(()) + 0.5, dist.constraints.positive)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=rows)

    def guide(x=None, index=None):
        pyro.module("encoder", encoder)
        scale = pyro.param("q_scale", lambda: torch.rand(1) + 0.5, dist.constraints.positive)
        with zoo.datum(x, index) as rows:
            pyro.sample("z", dist.Normal(encoder(rows), scale).to_event(1))

    return zoo.Problem(model, zoo.data.as_dataset(torch.randn(15, 2))), guide


@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
@pytest.mark.parametrize("batch_size", [4, None])
def test_plain_functions(seeds, batch_size):
    assert_steps_are_those_of_svi(*with_param_and_module(), seeds=seeds, batch_size=batch_size)


@pytest.mark.parametrize("name", ["normal_hierarchical", "eight_schools"])
def test_autoguides_of_shared_latents(name):
    problem = in_double(name)
    guide = AutoNormal(problem.model)
    assert_steps_are_those_of_svi(problem, guide, seeds=(3, 4), batch_size=None)


@pytest.mark.parametrize(
    "name", [n for n in legit.ENTRIES if n not in ("sorted_rows", "a_parameter_of_one_row")]
)
def test_programs_of_unusual_make(name):
    torch.set_default_dtype(torch.float32)
    problem, guide = legit.ENTRIES[name]()
    settings = {"steps": 5, "batch_size": None}
    ours = train(started(problem, guide, (3, 4), **settings), problem)
    for run, theirs in zip(ours, started(problem, guide, (3, 4), **settings), strict=True):
        assert run.engine["engine"] == "compiled"
        assert_close(run, train_eagerly(theirs, problem), 1e-3, 1e-4)

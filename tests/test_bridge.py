"""The ArviZ tree of a fit: its dimensions, its numbers, and that ArviZ works on it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from registered import JOINT, SPREAD, few_rows

import experiments
import guides
import zoo
from experiments.measure import bridge
from experiments.measure.bridge import az


@pytest.fixture(scope="module", params=SPREAD)
def fit(request):
    """A short fit of 40 rows with three seeds."""
    everything = zoo.load(request.param).data
    rows = zoo.data.DataSet(
        "part",
        everything.train[:40],
        everything.test[:10],
        train_labels=everything.train_labels[:40],
        image_shape=everything.image_shape,
    )
    problem = zoo.load(request.param, data=rows)
    guide = guides.build("amortized", problem)
    return experiments.fit(problem, guide, steps=120, seeds=[5, 6, 7], learning_rate=0.02)


@pytest.fixture(scope="module")
def tree(fit):
    return fit.to_datatree(50)


def test_dimensions_have_their_names(fit, tree):
    for latent in fit.problem.latents:
        z = tree["posterior"][latent.name]
        assert z.dims[:3] == ("chain", "draw", "datum")
        assert z.shape == (3, 50, 40, *latent.event_shape)
        assert z["chain"].values.tolist() == [5, 6, 7]
    for group, name in (("log_likelihood", "x"), ("sample_stats", "log_p")):
        assert tree[group][name].dims == ("chain", "draw", "datum")
    assert tree["sample_stats"]["elbo"].dims == ("chain", "step")
    assert tree["observed_data"]["x"].dims == ("datum", "x_dim_0")
    assert tree["constant_data"]["label"].dims == ("datum",)


def drawn(fit, tree, chain):
    """{latent: its draws} of a chain."""
    names = [latent.name for latent in fit.problem.latents]
    return {name: torch.tensor(tree["posterior"][name].values[chain]) for name in names}


def test_numbers_are_the_densities_of_the_draws(fit, tree):
    """log p against the second density; log p = log prior + log likelihood."""
    problem = fit.problems[1]
    draws = drawn(fit, tree, 1)
    x, each = problem.data.train, ({n: v[d] for n, v in draws.items()} for d in range(50))
    with torch.no_grad():
        log_p = np.stack([problem.log_joint(problem.model, x, **one).numpy() for one in each])
    stats = tree["sample_stats"]
    np.testing.assert_allclose(stats["log_p"].values[1], log_p, rtol=1e-4, atol=1e-3)
    bound = (stats["log_p"] - stats["log_q"]).mean(("draw", "datum")).values
    np.testing.assert_allclose(bound, fit.elbo_per_datum, atol=0.5)
    np.testing.assert_allclose(stats["elbo"].values, fit.history * 40)  # rows


def test_prior_and_predictive_draws(fit, tree):
    """Replicated rows have the mean of their draws, and prior draws the moments of the prior."""
    problem = fit.problems[2]
    replicated = tree["posterior_predictive"]["x"]
    assert replicated.dims == ("chain", "draw", "datum", "x_dim_0")
    if problem.predictive_mean is not None:
        with torch.no_grad():
            mean = problem.predictive_mean(problem.model, **drawn(fit, tree, 2)).double().numpy()
        residual = replicated.values[2] - mean
        assert abs(residual.mean()) < 4 * residual.std() / np.sqrt(residual.size)
    first = problem.latents[0].name
    prior = tree["prior"][first]
    assert prior.dims == tree["posterior"][first].dims
    if not problem.latents[0].support.is_discrete:
        assert abs(prior.values.mean()) < 4 / np.sqrt(prior.size)
        assert abs(prior.values.var() - 1) < 4 * np.sqrt(2 / prior.size)
    assert tree["prior_predictive"]["x"].dims == replicated.dims
    assert (prior.values[0] != prior.values[1]).any()  # every seed has a stream of its own


def test_predictive_groups_can_be_left_out(fit, monkeypatch):
    bare = {"posterior", "log_likelihood", "sample_stats", "observed_data", "constant_data"}
    assert set(fit.to_datatree(2, predictive=False).children) == bare
    monkeypatch.setattr(bridge, "PREDICTIVE_CELLS", 2 * 3 * 2 * fit.problem.data.train.numel())
    assert set(fit.to_datatree(2).children) > bare
    assert set(fit.to_datatree(3).children) == bare
    assert set(fit.to_datatree(3, predictive=True).children) > bare


def test_netcdf_round_trip(tree, tmp_path):
    bridge.write(tree, tmp_path / "posterior.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as back:
        assert set(back.children) == set(tree.children)
        for name in tree["posterior"].data_vars:
            xr.testing.assert_identical(back["posterior"][name], tree["posterior"][name])


# R-hat is infinite, or 0 / 0, where a discrete latent never changes within a chain.
@pytest.mark.filterwarnings(
    "ignore:Estimated shape parameter of Pareto",
    "ignore:divide by zero",
    "ignore:invalid value",
    "ignore:Your data appears to have a single value",
)
def test_arviz_works_on_it(fit, tree):
    summary = az.summary(tree)
    assert len(summary) == 40 * sum(math.prod(la.event_shape) for la in fit.problem.latents)
    loo = az.loo(tree, var_name="x")
    assert np.isfinite(loo.elpd)
    if fit.problem.truth.log_evidence is not None:
        exact = fit.log_evidence(fit.problem.data.train).sum(1).mean().item()
        assert loo.elpd > exact - 400
    plot = az.plot_dist(tree.isel(datum=slice(0, 2)) if hasattr(tree, "isel") else tree)
    assert plot is not None


def test_global_latents_and_no_labels():
    def model(x=None, index=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(8, 1)))
    fit = experiments.fit(problem, guides.build("amortized", problem), steps=5, seeds=2)
    tree = fit.to_datatree(6)
    assert tree["posterior"]["mean"].dims == ("chain", "draw")
    assert tree["posterior"]["z"].dims == ("chain", "draw", "datum")
    assert tree["sample_stats"]["shared_log_p"].dims == ("chain", "draw")
    assert "constant_data" not in tree.children


@pytest.mark.parametrize("name", JOINT)
def test_registered_problems_whose_rows_share_a_latent(name):
    """Plates by their names; every draw's log p is the second density of all rows."""
    problem = few_rows(name)
    fit = experiments.fit(problem, guides.build("mean_field", problem), steps=5, seeds=2)
    tree, n = fit.to_datatree(6), len(problem.data.train)
    for latent in problem.latents:
        own = ("chain", "draw", problem.plate) if latent.local else ("chain", "draw")
        assert tree["posterior"][latent.name].dims == own
    stats = tree["sample_stats"]
    found = stats["log_p"].values
    if any(latent.local for latent in problem.latents):
        assert stats["log_p"].dims == ("chain", "draw", problem.plate)
        found = found.sum(-1) + stats["shared_log_p"].values
    latents = {v.name: torch.tensor(tree["posterior"][v.name].values) for v in problem.latents}
    expected = problem.log_joint(problem.model, problem.data.train, **latents)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(
        tree["observed_data"]["x"].values.reshape(n, -1)[:, 0], problem.data.train[:, 0]
    )


def test_the_bound_has_the_same_unit_as_in_the_tree_of_a_pair(fit):
    """Total nats: here of one fit's own losses, given to from_svi."""
    losses = [(-fit.history[0] * len(fit.problem.data.train)).tolist()]
    pair = experiments.from_svi(
        fit.models[0], fit.guides[0], fit.problem.data.train, num_draws=2, losses=losses, params={}
    )
    own = fit.to_datatree(2)["sample_stats"]["elbo"]
    np.testing.assert_allclose(own.values[:1], pair["sample_stats"]["elbo"], rtol=1e-6)
    np.testing.assert_allclose(own[:, -20:].mean("step"), fit.elbo, rtol=0.2)


@pytest.mark.parametrize("num_draws", [0, 2.0, None])
def test_no_draws_is_refused(fit, num_draws):
    with pytest.raises(zoo.ZooError, match="num_draws"):
        fit.to_datatree(num_draws, predictive=False)

"""Every measure of every kind of pair: finite numbers, or a reason why one has no answer."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import experiments
import guides
import zoo
from experiments.measure.elbo import log_weights
from experiments.measure.measures import measure
from experiments.measure.rows import fit_joint, fit_rows
from experiments.settings import MeasureConfig

FEW = MeasureConfig(
    num_draws=8,
    restarts=0,
    simulations=20,
    rank_draws=19,
    pareto_rows=10,
    pareto_draws=100,
    interval_rows=4,
    interval_draws=20,
    interval_temperatures=4,
)


def one_positive(x=None, index=None):
    with zoo.datum(x, index) as rows:
        z = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])


def simplex(x=None, index=None):
    with zoo.datum(x, index) as rows:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(share[..., 0], 1.0), obs=None if rows is None else rows[:, 0])


def two_locals(x=None, index=None):
    with zoo.datum(x, index) as rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=None if rows is None else rows[:, 0])


def shared_and_local(x=None, index=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])


def discrete_and_continuous(x=None, index=None):
    with zoo.datum(x, index) as rows:
        c = pyro.sample("c", dist.Categorical(torch.ones(2)))
        z = pyro.sample("z", dist.Normal(3.0 * c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])


def covariates(x=None, index=None):
    """A response beside two covariates, which enter by a matrix product."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = z if rows is None else z + rows[:, 1:] @ torch.tensor([0.5, -0.5])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=None if rows is None else rows[:, 0])


def transformed(x=None, index=None):
    """The likelihood observes no entries of the rows, so that none can be simulated."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows.exp().sum(-1))


# What has no answer: {model: {measure}} for every guide.
SKIPPED = {
    "transformed": {"evidence interval", "calibration"},
}
MODELS = (
    one_positive,
    simplex,
    two_locals,
    shared_and_local,
    discrete_and_continuous,
    covariates,
    transformed,
)


def fitted(problem, name):
    fit = experiments.fit(problem, guides.build(name, problem), steps=20, batch_size=None)
    return fit.problems[0], fit.guides[0]


def numbers(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("name", ["mean_field", "amortized", "constant", "full_rank"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_measures_of_any_model(model, name):
    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(12, 3)))
    if model is discrete_and_continuous and name == "full_rank":
        with pytest.raises(zoo.ZooError, match="it is discrete"):
            guides.build(name, problem)
        return
    record = measure(*fitted(problem, name), FEW).record()
    assert set(record.get("skipped", {})) == SKIPPED.get(model.__name__, set())
    assert all(math.isfinite(number) for number in numbers(record))
    assert json.loads(json.dumps(record)) == record
    gap, se = (record["gaps"][f"amortization_gap_per_datum{end}"] for end in ("", "_se"))
    assert gap >= -4 * se - 1e-3
    assert ("held_out" in record) != problem.joint


@pytest.mark.parametrize("name", ["mean_field", "amortized", "constant", "full_rank"])
@pytest.mark.parametrize("model", ["eight_schools", "beta_bernoulli"])
def test_measures_of_joint_problems_that_know_their_evidence(model, name):
    problem = zoo.load(model)
    record = measure(*fitted(problem, name), FEW).record()
    assert all(math.isfinite(number) for number in numbers(record))
    assert "calibration" not in record
    assert record["pareto"]["num_data"] == 1
    assert record["pareto"]["median_se"] > 0
    assert record["gaps"]["total_gap_per_datum"] > -0.05


def test_a_larger_family_has_no_larger_gap():
    """The search finds the full-rank normal at least as near to the schools as the diagonal one."""
    problem = zoo.load("eight_schools")
    x = problem.data.train
    bounds = {}
    for name in ("mean_field", "full_rank"):
        best = fit_joint(problem, guides.build(name, problem), x)
        assert best.converged
        weights = log_weights(problem, best.guide, x, 5000)
        bounds[name] = weights.mean().item(), (weights.std() / 5000**0.5).item()
    (small, small_se), (large, large_se) = bounds["mean_field"], bounds["full_rank"]
    assert large - small > -3 * (small_se**2 + large_se**2) ** 0.5


def test_one_row_to_test_on_has_an_interval():
    data = zoo.data.DataSet("few", torch.randn(12, 3), torch.randn(1, 3))
    problem = zoo.Problem(two_locals, data)
    gaps = measure(*fitted(problem, "mean_field"), FEW).record()["gaps"]
    assert gaps["log_evidence_lower_per_datum"] < gaps["log_evidence_upper_per_datum"]


def test_what_a_guide_has_is_not_worse_than_the_best_of_its_family():
    """A guide at its optimum: the search adds no gap of its own."""
    from experiments.measure.gaps import gaps, own_and_best
    from zoo import gaussian_lvm

    problem = zoo.load("gaussian_lvm", latent_dim=10)
    gaussian_lvm.maximum_likelihood(problem.model, problem.data.train)
    x = problem.data.test[:100]
    posterior = problem.posterior(x)
    scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    rows = torch.cat([posterior.mean, scale.log().expand(100, 10)], 1)
    table = guides.build("mean_field", problem).with_table(problem, 100, {"z": rows})
    best = fit_rows(problem, table, x, {"z": rows})
    found = gaps(problem, table, x, best.guide, num_draws=400)
    assert found["amortization_gap_per_datum"] > -4 * found["amortization_gap_per_datum_se"] - 1e-4
    assert own_and_best(problem, table, x)[0] is not table  # a table has no answer for new data


def test_infinite_k_stays_infinite_in_a_table():
    from experiments.report import table

    runs = [
        {
            "label": "m-g",
            "seed": seed,
            "status": "ok",
            "config": {"guide": "g"},
            "measures": {"pareto": {"median": median}},
        }
        for seed, median in enumerate([0.3, "inf"])
    ]
    (row,) = table.rows(runs)
    assert row["median k"] == (math.inf, None)
    assert table.cell(row, "median k") == "inf"

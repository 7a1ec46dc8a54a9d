"""Pareto k against ArviZ, against tails whose shape is known, and on weights without a tail."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats

import guides
import zoo
from experiments.measure import pareto
from experiments.measure.elbo import latent_names
from experiments.measure.pareto import pareto_k, shape_of_tail, summary
from guides.oracle import Oracle, spread_by


def reference(log_weight):
    """ArviZ's k of every column; its function takes minus the log weights."""
    return torch.from_numpy(array_stats.psislw(-log_weight.numpy(), axis=0)[1])


@pytest.mark.parametrize("num_draws", [25, 100, 226, 1000, 20_000])
def test_k_equals_that_of_arviz(num_draws):
    spread = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0, 30.0])
    log_weight = torch.randn(num_draws, 6, dtype=torch.float64) * spread - 100 * spread
    found = shape_of_tail(log_weight)
    torch.testing.assert_close(found, reference(log_weight), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decimals", [0, 1])
def test_k_equals_that_of_arviz_where_draws_are_tied(decimals):
    """Draws tied with the threshold are not in the tail, whose length then differs by column.

    ArviZ 1.x leaves them in, as excesses of zero, so its fit alone is the reference.
    """
    log_weight = (2 * torch.randn(400, 50, dtype=torch.float64)).round(decimals=decimals)
    found, lengths = shape_of_tail(log_weight), set()
    for column, k in zip(log_weight.T, found, strict=True):
        weight = (column - column.max()).exp().sort().values
        excess = weight[-60:] - weight[-61]
        lengths.add((excess > 0).sum().item())
        if (excess > 0).sum() < 5:
            assert k == math.inf
            continue
        assert k.item() == pytest.approx(array_stats._gpdfit(excess[excess > 0].numpy())[0])
    assert len(lengths) > 5


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0])
def test_k_of_exactly_pareto_weights(shape):
    """P(w > t) = t^(-1 / shape); the tail of 20,000 draws is 424 long, and pulled to 0.5 by 10."""
    uniform = torch.rand(20_000, 100, dtype=torch.float64)
    found = shape_of_tail(-shape * uniform.log())
    pulled = (424 * shape + 5) / 434
    assert found.mean().item() == pytest.approx(pulled, abs=4 * found.std().item() / 10 + 0.005)


def test_units_do_not_mix_and_blocks_do_not_matter(monkeypatch):
    log_weight = torch.randn(500, 7, dtype=torch.float64) * torch.arange(1.0, 8.0)
    whole = shape_of_tail(log_weight)
    monkeypatch.setattr(pareto, "CELLS_AT_ONCE", 1)
    torch.testing.assert_close(shape_of_tail(log_weight), whole)
    torch.testing.assert_close(shape_of_tail(log_weight.flip(1)), whole.flip(0))
    torch.testing.assert_close(shape_of_tail(log_weight + 1000), whole)


def test_weights_without_a_tail_have_zero():
    rounding = 1e-4 * torch.randn(1000)
    two_values = torch.full((1000,), -5.0)
    two_values[:400] = 0.0
    log_weight = torch.stack([torch.full((1000,), -600.0), rounding - 600, two_values], 1)
    assert shape_of_tail(log_weight).tolist() == [0, 0, 0]


def test_few_towering_draws_have_infinity_and_impossible_ones_are_no_tail():
    towers = torch.zeros(1000)
    towers[:3] = 10.0
    half = torch.randn(1000)
    half[500:] = -math.inf
    log_weight = torch.stack([towers, half], 1)
    found = shape_of_tail(log_weight)
    assert found[0] == math.inf
    assert -0.5 < found[1] < 0.7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_densities_that_are_not_finite_are_refused(bad):
    log_weight = torch.randn(100, 2)
    log_weight[3, 1] = bad
    with pytest.raises(zoo.ZooError, match="NaN or infinite"):
        shape_of_tail(log_weight)


def test_data_that_the_model_makes_impossible_are_refused():
    with pytest.raises(zoo.ZooError, match="zero density"):
        shape_of_tail(torch.full((100, 1), -math.inf))


def small_problem():
    problem = zoo.load("gaussian_lvm", data=torch.randn(60, 4), latent_dim=1)
    with torch.no_grad():
        problem.model.weight.normal_()
    return problem


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.8, 0.9])
def test_k_of_a_guide_that_is_too_narrow(factor):
    """A normal guide with `factor` times the posterior's sd has k = 1 - factor^2."""
    problem = small_problem()
    guide = Oracle(problem, spread_by(factor))
    k = pareto_k(problem, guide, problem.data.train, num_draws=20_000)
    assert k.shape == problem.data.train.shape[:1]
    assert k.mean().item() == pytest.approx(1 - factor**2, abs=0.06)


def test_data_in_blocks_have_draws_of_their_own(monkeypatch):
    problem = small_problem()
    guide, x = Oracle(problem, spread_by(0.7)), problem.data.train[:1].repeat(40, 1)
    whole = pareto_k(problem, guide, x, 2000)
    monkeypatch.setattr(pareto, "DRAWS_AT_ONCE", 20_000)
    blocks = pareto_k(problem, guide, x, 2000)
    assert len(blocks) == len(blocks.unique()) == 40
    se = math.sqrt((whole.var().item() + blocks.var().item()) / 40)
    assert blocks.mean().item() == pytest.approx(whole.mean().item(), abs=4 * se)


def test_global_random_state_is_left_alone():
    problem = small_problem()
    before = torch.get_rng_state()
    first, second = (pareto_k(problem, Oracle(problem), problem.data.train) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


def shared_mean():
    """mu ~ Normal(0, 1), x_n ~ Normal(mu, 1): a joint problem whose posterior is known."""

    def model(x=None, index=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=None if rows is None else rows[:, 0])

    def posterior(model, x):
        precision = 1.0 + len(x)
        return dist.Normal(x.sum() / precision, precision**-0.5)

    truth = zoo.Truth("T0", "conjugate", posterior=posterior)
    return zoo.Problem(model, zoo.data.as_dataset(torch.randn(10, 1) + 1), truth=truth)


def test_rows_that_share_a_latent_have_one_k(monkeypatch):
    problem = shared_mean()
    x = problem.data.train
    monkeypatch.setattr(pareto, "DRAWS_AT_ONCE", 5000)  # joint rows are never split
    assert pareto_k(problem, Oracle(problem), x).tolist() == [0]
    k = [pareto_k(problem, Oracle(problem, spread_by(0.7)), x, 20_000, seed) for seed in range(8)]
    assert torch.cat(k).mean().item() == pytest.approx(0.51, abs=0.08)


def test_a_point_estimate_is_refused():
    problem = small_problem()

    def point(x=None, index=None):
        with zoo.datum(x, index) as rows:
            pyro.sample("z", dist.Delta(torch.zeros(len(rows), 1)).to_event(1))

    with pytest.raises(zoo.ZooError, match="has no log q: it is a point estimate of z"):
        pareto_k(problem, point, problem.data.train)


def test_pyros_own_guide_has_a_density_although_its_sites_are_points():
    problem = shared_mean()
    guide = pyro.infer.autoguide.AutoNormal(problem.model)
    assert "mu" in latent_names(guide, problem.data.train)


@pytest.mark.parametrize("num_draws", [0, 24, 100.0])
def test_too_few_draws_are_refused(num_draws):
    problem = small_problem()
    with pytest.raises(zoo.ZooError, match="at least 25 draws"):
        pareto_k(problem, guides.build("amortized", problem), problem.data.train, num_draws)


def test_summary():
    k = torch.tensor([0.1, 0.9, math.inf, 0.5], dtype=torch.float64)
    found = summary(k, torch.tensor([3, 3, 8, 8]), num_worst=2)
    assert found["share"] == 0.5
    assert found["share_se"] == pytest.approx(0.25)
    assert found["mean"] == pytest.approx(0.5)
    assert found["mean_se"] == pytest.approx(np.std([0.1, 0.9, 0.5], ddof=1) / math.sqrt(3))
    assert found["median"] == pytest.approx(0.5)
    assert found["num_infinite"] == 1
    assert [worst["index"] for worst in found["worst"]] == [2, 1]
    assert found["by_class"][3]["mean"] == pytest.approx(0.5)
    assert found["by_class"][8] == {
        "num_data": 2,
        "num_infinite": 1,
        "share": 0.5,
        "mean": 0.5,
        "median": 0.5,
    }
    with pytest.raises(zoo.ZooError, match="3 labels for 4 data"):
        summary(k, torch.tensor([1, 2, 3]))

"""Gaps where they are known: restarts, intervals, joint problems, and what tables make of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import experiments
import guides
import zoo
from experiments.measure.gaps import gap_values, gaps, own_and_best
from experiments.measure.measures import measure
from experiments.measure.rows import fit_joint, fit_rows
from experiments.report import table
from experiments.settings import MeasureConfig
from zoo.problem import NO_TRUTH


def two_modes(x=None, index=None):
    """x = |z| + noise: the mode with z > 0 has 1.5 nats more than its mirror image."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(1.0, 2.0))
        pyro.sample("x", dist.Normal(z.abs(), 0.3), obs=None if rows is None else rows[:, 0])


def test_restarts_leave_a_worse_mode():
    problem = zoo.Problem(two_modes, zoo.data.as_dataset(torch.full((12, 1), 3.0)))
    guide, x = guides.build("mean_field", problem), problem.data.train
    start = {"z": torch.tensor([[-3.0, -1.0]]).expand(12, 2)}
    stuck = fit_rows(problem, guide, x, start)
    assert (stuck.guide.rows(x)["z"][:, 0] < -2).all()
    free = fit_rows(problem, guide, x, start, restarts=6)
    assert (free.guide.rows(x)["z"][:, 0] > 2).all()
    assert (free.restarts, free.restarted) == (6, 1.0)
    gain = gaps(problem, stuck.guide, x, free.guide)["amortization_gap_per_datum"]
    assert gain == pytest.approx(1.5, abs=0.05)


def test_an_encoder_starts_the_search_that_a_table_does_anew():
    problem = zoo.load("gaussian_lvm")
    encoder = guides.build("amortized", problem)
    x = problem.data.test[:20]
    own, best = own_and_best(problem, encoder, x)
    assert own is encoder
    found = gap_values(problem, own, x, best.guide)
    assert (found["amortization_gap"] > 0).all()
    torch.testing.assert_close(
        found["total_gap"], found["approximation_gap"] + found["amortization_gap"]
    )


@pytest.mark.slow
def test_an_interval_holds_the_gaps_that_are_known():
    """gaussian_lvm as if nothing were known of it, against what is known."""
    problem = zoo.load("gaussian_lvm", latent_dim=4)
    fit = experiments.fit(problem, guides.build("amortized", problem), steps=300, batch_size=256)
    known, guide = fit.problems[0], fit.guides[0]
    settings = MeasureConfig(simulations=0, interval_rows=60, interval_draws=500)
    hidden = measure(known.having(truth=NO_TRUTH), guide, settings).record()["gaps"]
    rows = measure(known, guide, settings).rows
    assert len(rows) == 450
    assert hidden["interval_rows"] == 60
    order = torch.randperm(450, generator=torch.Generator().manual_seed(0))[:60]
    x = problem.data.test[order.sort().values]
    exact = known.log_evidence(x).mean().item()
    assert hidden["log_evidence_lower_per_datum"] - 0.05 < exact
    assert exact < hidden["log_evidence_upper_per_datum"] + 0.05
    width = hidden["total_gap_upper_per_datum"] - hidden["total_gap_lower_per_datum"]
    assert 0 < width < 0.1


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_a_joint_problem_has_the_gap_of_its_precision(rho):
    """Two shared latents with correlated posterior: 1/2 (sum log P_ii - log det P)."""

    def model(x=None, index=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            mean = a + rho * b
            pyro.sample("x", dist.Normal(mean, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(5, 1)))
    precision = torch.tensor([[6.0, 5 * rho], [5 * rho, 1 + 5 * rho**2]])
    expected = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    x = problem.data.train
    covariance = torch.eye(5) + (1 + rho**2)
    exact = dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(x[:, 0])
    truth = zoo.Truth("T0", "normal", lambda model, x: exact, None)
    problem = problem.having(truth=truth)
    best = fit_joint(problem, guides.build("mean_field", problem), x)
    assert best.converged
    found = gaps(problem, best.guide, x, best.guide, num_draws=20_000)
    se = found["total_gap_per_datum_se"]
    assert found["total_gap_per_datum"] == pytest.approx(expected / 5, abs=4 * se + 2e-4)


def record(guide, seed, evidence):
    measures = {"train": {"log_evidence_per_datum": evidence}, "gaps": {}}
    return {
        "label": f"m-{guide}",
        "seed": seed,
        "status": "ok",
        "config": {"guide": guide},
        "measures": measures,
        "cost": {},
    }


def test_training_gap_is_to_the_best_guide_seed_by_seed():
    found = [record("a", 0, -1.0), record("a", 1, -3.0), record("b", 0, -2.0), record("b", 1, -5.0)]
    one, other = table.rows(found)
    assert one["training gap"] == (0, 0)
    assert other["training gap"] == pytest.approx((1.5, 0.5))


def test_restarts_must_be_a_count():
    problem = zoo.load("gaussian_lvm")
    with pytest.raises(zoo.ZooError, match="restarts must be a whole number from 0, got -1"):
        fit_rows(problem, guides.build("mean_field", problem), problem.data.test, restarts=-1)


def test_encoders_of_a_joint_problem_are_not_trained_further_for_their_gap():
    """What they would gain is no amortization gap: their parameters are no row a datum."""
    problem = zoo.load("eight_schools")
    own, best = own_and_best(problem, guides.build("top_down", problem), problem.data.train)
    assert best is None
    assert own.name == "top_down"

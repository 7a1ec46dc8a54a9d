"""The classifier test: how often it refuses an exact guide, and what it must see."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
import zoo
from experiments.measure.c2st import c2st
from guides.oracle import Oracle, independent, shift_by, spread_by


def linear(latent_dim=2, num_data=60):
    problem = zoo.load("gaussian_lvm", data=torch.randn(num_data, 6), latent_dim=latent_dim)
    with torch.no_grad():
        problem.model.weight.normal_()
    return problem


@pytest.mark.parametrize(("num_data", "num_draws"), [(60, 10), (3, 100)])
def test_an_exact_guide_is_refused_as_seldom_as_declared(num_data, num_draws):
    problem, runs = linear(num_data=num_data), 60
    guide, x = Oracle(problem), problem.data.train
    p = np.array([c2st(problem, guide, x, num_draws, seed).p_value for seed in range(runs)])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() < level + 4 * math.sqrt(level * (1 - level) / runs)
    assert 0.3 < p.mean() < 0.8


def test_accuracy_is_at_most_what_the_total_variation_allows():
    """One dimension, sd times 0.5: total variation 0.3228, so accuracy at most 0.6614."""
    problem = linear(latent_dim=1)
    found = c2st(problem, Oracle(problem, spread_by(0.5)), problem.data.train, 200)
    assert 0.64 < found.accuracy < 0.6614 + 4 * found.se
    assert found.se == pytest.approx(math.sqrt(found.accuracy * (1 - found.accuracy) / 12_000))
    assert found.num_pairs == 6000


def test_a_missing_correlation_is_seen():
    problem = linear(latent_dim=3)
    x = problem.data.train
    assert c2st(problem, Oracle(problem, independent), x, 100).p_value < 1e-6


def test_a_shift_whose_sign_depends_on_the_datum_is_seen():
    """Pooled over the data it cancels: the classifier must know roughly which datum it sees."""
    problem = linear()

    def alter(q):
        loc = q.mean + 0.25 * q.variance.sqrt() * q.mean.sign()
        return dist.MultivariateNormal(loc, q.covariance_matrix)

    assert c2st(problem, Oracle(problem, alter), problem.data.train, 100).p_value < 1e-6


def test_another_shape_of_the_same_mean_and_sd_is_seen():
    problem = linear(latent_dim=1)

    def alter(q):
        sd = q.variance.sqrt()
        return dist.Uniform(q.mean - 3**0.5 * sd, q.mean + 3**0.5 * sd).to_event(1)

    assert c2st(problem, Oracle(problem, alter), problem.data.train, 100).p_value < 1e-6


def test_rows_that_share_a_latent_are_one_unit():
    def model(x=None, index=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=None if rows is None else rows[:, 0])

    def posterior(model, x):
        return dist.Normal(x.sum() / (1.0 + len(x)), (1.0 + len(x)) ** -0.5)

    truth = zoo.Truth("T0", "conjugate", posterior=posterior)
    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(10, 1)), truth=truth)
    x = problem.data.train
    assert c2st(problem, Oracle(problem), x, 4000).p_value > 0.001
    assert c2st(problem, Oracle(problem, shift_by(0.5)), x, 4000).p_value < 1e-6
    with pytest.raises(zoo.ZooError, match="got 50 draws for each of 1"):
        c2st(problem, Oracle(problem), x, 50)


def test_reruns_are_equal():
    problem = linear()
    guide, x = Oracle(problem), problem.data.train
    state = torch.get_rng_state()
    assert c2st(problem, guide, x, 10) == c2st(problem, guide, x, 10)
    assert c2st(problem, guide, x, 10) != c2st(problem, guide, x, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input_is_refused():
    problem = zoo.load("vae", latent_dim=3)
    guide = guides.build("amortized", problem)
    with pytest.raises(zoo.TruthUnavailable, match="knows no exact posterior"):
        c2st(problem, guide, problem.data.test)
    problem = linear()
    with pytest.raises(zoo.ZooError, match="at least 100 pairs of draws, got 0 draws"):
        c2st(problem, Oracle(problem), problem.data.train, 0)

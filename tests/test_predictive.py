"""Predictive checks: p-values of a right model and of one that is wrong on purpose."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value
from scipy import stats

import zoo
from experiments.measure.predictive import (
    STATISTICS,
    check,
    posterior_predictive,
    prior_predictive,
    table,
)


def poisson_pair(num_data, total):
    """Counts with one rate, Gamma(2, 0.5), and its exact posterior."""

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        with pyro.plate("row", num_data):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    def guide(y):
        pyro.sample("rate", dist.Gamma(2.0 + total, 0.5 + num_data))

    return model, guide


def checked(y, statistics, num_draws=1000):
    replicated = posterior_predictive(
        *poisson_pair(len(y), y.sum()), y, num_draws=num_draws, parallel=True
    )["y"]
    return {c.statistic: c for c in check(replicated, y, statistics)}


def test_a_right_model_passes_and_an_overdispersed_one_is_refused():
    statistics = ["mean", "variance", "max", "zeros"]
    right = checked(torch.poisson(torch.full((200,), 4.0)), statistics)
    assert all(found.p_value > 0.02 for found in right.values())
    assert all(found.low <= found.observed <= found.high for found in right.values())
    rates = torch.distributions.Gamma(1.0, 0.25).sample((200,))
    wrong = checked(torch.poisson(rates), statistics)
    for name in ("variance", "max", "zeros"):
        assert wrong[name].p_value < 0.01
        assert wrong[name].observed > wrong[name].high
    assert wrong["mean"].p_value > 0.5  # the one thing that the model does fit


def test_prior_p_values_are_uniform_under_the_model():
    """150 data sets from the prior, each checked against others: Kolmogorov-Smirnov."""
    model, guide = poisson_pair(8, torch.tensor(20.0))
    sets = prior_predictive(model, guide, torch.zeros(8), num_draws=1150, parallel=True)["y"]
    # A continuous statistic, as ties make p-values larger than uniform.
    jitter = torch.rand(1150)
    statistics = {"first": lambda data: data[0]}
    with_jitter = sets.mean(1) + 0.01 * jitter
    p_values = [
        check(with_jitter[150:, None], with_jitter[n : n + 1], statistics)[0].p_value
        for n in range(150)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    lower = [check(sets[150:], sets[n], "mean")[0].p_value for n in range(80)]
    share = np.mean(np.array(lower) < 0.1)
    assert share < 0.1 + 4 * np.sqrt(0.09 / 80)


def test_prior_draws_have_the_marginal_moments():
    """E y = 4; var y = E rate + var rate = 4 + 8; covariance within a data set = var rate."""
    model, guide = poisson_pair(2, torch.tensor(6.0))
    draws = prior_predictive(model, guide, torch.zeros(2), num_draws=20_000, parallel=True)["y"]
    y = draws.double().numpy()
    centered = y - 4
    for found, expected in (
        (y[:, 0], 4),
        (centered[:, 0] ** 2, 12),
        (centered.prod(1), 8),
    ):
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(y))


def test_posterior_draws_have_the_marginal_moments():
    """y given data is negative binomial."""
    model, guide = poisson_pair(2, torch.tensor(6.0))
    y = posterior_predictive(model, guide, torch.zeros(2), num_draws=20_000, parallel=True)["y"]
    exact = stats.nbinom(8, 2.5 / 3.5)
    found = y[:, 0].double().numpy()
    assert abs(found.mean() - exact.mean()) < 4 * exact.std() / np.sqrt(len(found))
    squares = (found - exact.mean()) ** 2
    assert abs(squares.mean() - exact.var()) < 4 * squares.std() / np.sqrt(len(found))


@pytest.mark.parametrize("parallel", [False, True])
def test_a_point_guide_has_replicated_data(parallel):
    """At its point: y is Poisson(rate), with mean and variance the MAP rate."""
    model, _ = poisson_pair(40, torch.tensor(0.0))
    guide, y = (
        AutoDelta(model, init_loc_fn=init_to_value(values={"rate": torch.tensor(3.0)})),
        torch.ones(40),
    )
    with pytest.raises(zoo.ZooError, match="has no parameters yet: fit it first"):
        posterior_predictive(model, guide, y)
    guide(y)
    draws = posterior_predictive(model, guide, y, num_draws=250, parallel=parallel)["y"]
    assert draws.shape == (250, 40)
    assert abs(draws.mean() - 3) < 4 * np.sqrt(3 / draws.numel())
    assert abs(draws.var() / 3 - 1) < 4 * np.sqrt((2 + 1 / 3) / draws.numel())


@pytest.mark.parametrize("guide", [None, lambda y: None, AutoDelta(poisson_pair(2, 1.0)[0])])
def test_the_prior_needs_no_guide(guide):
    model, exact = poisson_pair(2, torch.tensor(6.0))
    found = prior_predictive(model, guide, torch.zeros(2), num_draws=2000, parallel=True)["y"]
    expected = prior_predictive(model, exact, torch.zeros(2), num_draws=2000, parallel=True)["y"]
    assert torch.equal(found, expected)
    assert abs(found.mean() - 4) < 4 * np.sqrt((12 + 8) / 2 / 2000)


def test_predictive_draws_at_a_given_state():
    def model(y):
        shift = pyro.param("shift", torch.tensor(0.0))
        level = pyro.sample("level", dist.Normal(shift, 0.1))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(level, 0.1), obs=y)

    def guide(y):
        pyro.sample("level", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    y = torch.zeros(3)
    pyro.clear_param_store()
    pyro.param("shift", torch.tensor(50.0))
    pyro.param("loc", torch.tensor(70.0))
    state = pyro.get_param_store().get_state()
    pyro.clear_param_store()
    for draw, at in ((prior_predictive, 50.0), (posterior_predictive, 70.0)):
        with pytest.raises(zoo.ZooError, match="is not in Pyro's store"):
            draw(model, guide, y, num_draws=5)
        with pytest.raises(zoo.ZooError, match="params are one state of Pyro's store"):
            draw(model, guide, y, num_draws=5, params=[state, state])
        assert (draw(model, guide, y, num_draws=5, params=state)["y"] - at).abs().max() < 2
        assert draw(model, guide, y, num_draws=5, params={})["y"].abs().max() < 2


def test_draws_that_are_no_numbers_or_cannot_be_drawn_are_refused():
    def model(y):
        level = pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(level, 0.1), obs=y)

    def guide(y):
        pyro.sample("level", dist.Normal(torch.tensor(float("nan")), 1.0, validate_args=False))

    with pytest.raises(zoo.ZooError, match="replicated data of 'y' have a value that is NaN"):
        posterior_predictive(model, guide, torch.zeros(3), num_draws=2)
    with pytest.raises(zoo.ZooError, match="the prior cannot be drawn") as caught:
        prior_predictive(model, guide, torch.zeros(3), num_draws=2)
    assert "\n" not in str(caught.value)


def test_numbers_of_a_check_by_hand():
    replicated = np.arange(1.0, 100.0)[:, None]  # 99 data sets of one value
    (found,) = check(replicated, [97.5], {"value": lambda data: data[0]}, interval=0.5)
    assert found.observed == 97.5
    assert found.mean == 50
    assert (found.low, found.high) == (25.5, 74.5)
    assert found.p_value == pytest.approx(2 * 3 / 100)  # 98, 99, and the data themselves
    assert found.se == pytest.approx(2 * np.sqrt(0.03 * 0.97 / 99))
    (middle,) = check(replicated, [50], {"value": lambda data: data[0]})
    assert middle.p_value == 1
    (beyond,) = check(replicated, [1000], {"value": lambda data: data[0]})
    assert beyond.p_value == pytest.approx(0.02)


def test_chains_are_joined_and_every_name_works():
    data = torch.tensor([[0.0, 1.0, 2.0], [0.0, 4.0, 5.0]])
    found = check(data.expand(3, 5, 2, 3), data, list(STATISTICS))
    by_hand = [2.0, data.std(correction=0), data.var(correction=0), 0.0, 5.0, 1.5, 2 / 6, 3.0]
    np.testing.assert_allclose([c.observed for c in found], by_hand, rtol=1e-6)
    np.testing.assert_allclose([c.mean for c in found], by_hand, rtol=1e-6)
    assert all(c.p_value == 1 for c in found)
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(STATISTICS)
    assert lines[2] == "| mean | 2 | 2 | 2 | 2 | 1.000 |"


@pytest.mark.parametrize(
    ("replicated", "observed", "options", "sentence"),
    [
        (np.zeros((5, 3)), np.zeros(4), {}, r"draws of the observed, \(draws, 4\): got .*\(5, 3\)"),
        (np.zeros(3), np.zeros(3), {}, "draws of the observed"),
        (np.zeros((1, 3)), np.zeros(3), {}, "at least 2 draws, got 1"),
        (np.zeros((5, 0)), np.zeros(0), {}, "no observed data"),
        (np.full((5, 1), np.nan), np.zeros(1), {}, "replicated data have a value"),
        (np.zeros((5, 1)), np.full(1, np.inf), {}, "observed data have a value"),
        (np.zeros((5, 1)), np.zeros(1), {"interval": 1.0}, "interval must be between"),
        (np.zeros((5, 1)), np.zeros(1), {"statistics": "men"}, "unknown statistic 'men'; known: m"),
        (np.zeros((5, 1)), np.zeros(1), {"statistics": []}, "at least one statistic"),
        (np.zeros((5, 1)), np.zeros(1), {"statistics": {"a": 3}}, "'a' must be a function"),
        (np.zeros((5, 2)), np.zeros(2), {"statistics": {"a": lambda x: x}}, "does not give a num"),
        (
            np.zeros((5, 2)),
            np.zeros(2),
            {"statistics": {"a": lambda x: float("nan")}},
            "'a' is not finite",
        ),
    ],
)
def test_bad_input_gets_a_sentence(replicated, observed, options, sentence):
    with pytest.raises(zoo.ZooError, match=sentence) as caught:
        check(replicated, observed, **options)
    assert "\n" not in str(caught.value)

"""What the studies compute by themselves, against answers known otherwise."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize
from torch.distributions import MultivariateNormal, kl_divergence

import zoo
from experiments.studies import (
    amortization,
    anomaly_detection,
    autoencoder_vs_vae,
    conditioning,
    guide_order,
    intractable_sum,
    parameter_ladder,
    sampling_speed,
)
from experiments.studies.parts import judge, rows


def test_columns_are_in_order():
    table = [{"seed": s, "model": m, "value": s + 10 * m} for s in (1, 0) for m in (2, 3)]
    assert rows.column(table, "value", model=3).tolist() == [31, 30]
    assert rows.known(table, "seed") == [1, 0]


def test_pointwise_parameters_of_a_step_hang_on_that_step_alone():
    problem = zoo.load("linear_gaussian_ssm")
    guide = amortization.pointwise(problem, 8)
    x = problem.data.test[:1].clone().requires_grad_()
    q = guide.distribution("z", guide.rows(x)["z"])
    width = x.shape[-1] // problem.model.steps
    per_step = q.mean.shape[-1] // problem.model.steps
    for place, value in enumerate(q.mean[0]):
        (slope,) = torch.autograd.grad(value, x, retain_graph=True)
        touched = slope[0].unflatten(0, (-1, width)).abs().sum(-1).nonzero().flatten().tolist()
        assert touched == [place // per_step]


def test_edges_are_pairs_of_neighbors_that_differ():
    x = torch.randint(0, 2, (5, 64), generator=torch.Generator().manual_seed(0)).float()
    for image, found in zip(x.reshape(5, 8, 8).tolist(), anomaly_detection.edges(x), strict=True):
        side = sum(image[i][j] != image[i][j + 1] for i in range(8) for j in range(7))
        down = sum(image[i][j] != image[i + 1][j] for i in range(7) for j in range(8))
        assert found == side + down


def test_coverage_is_the_share_of_the_prior():
    random = np.random.default_rng(0)
    u = random.standard_normal((20_000, 3))
    assert autoencoder_vs_vae.coverage(u) > 0.999
    assert autoencoder_vs_vae.coverage(np.zeros((50, 3))) == pytest.approx(0.01)
    half = u[u[:, 0] > 0]  # two of the three pairs of axes lose half of their cells
    assert autoencoder_vs_vae.coverage(half) == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-3)


def test_codes_are_told_apart_where_they_differ_alone():
    u = np.random.default_rng(1).standard_normal((2000, 2))
    error = math.sqrt(0.25 / 2000)
    assert abs(autoencoder_vs_vae.told_apart(u, 0) - 0.5) < 3.3 * error
    best = stats.norm.cdf(1.0)  # of any classifier, for means two apart
    assert autoencoder_vs_vae.told_apart(u + np.array([2, 0]), 0) == pytest.approx(
        best, abs=4 * error
    )


def test_widened_spread_is_that_of_nadeau_and_bengio():
    values, share = np.array([0.3, 0.1, 0.4, 0.2, 0.6]), 0.25
    found = parameter_ladder.widened(values, share)
    t = values.mean() / math.sqrt((1 / 5 + share / (1 - share)) * values.var(ddof=1))
    assert stats.ttest_1samp(found, 0.0).statistic == pytest.approx(t)


def test_independent_normals_lose_what_algebra_says():
    """The least KL(q, p) that a search over diagonal normals finds."""
    precision = torch.tensor([[2.0, 0.9, 0.1], [0.9, 1.0, -0.3], [0.1, -0.3, 0.7]])
    p = MultivariateNormal(torch.zeros(3), precision_matrix=precision)

    def lost(log_scale):
        q = MultivariateNormal(
            torch.zeros(3), scale_tril=torch.tensor(log_scale).float().exp().diag()
        )
        return kl_divergence(q, p).item()

    found = minimize(lost, np.zeros(3), method="Nelder-Mead").fun
    assert guide_order.lost_by_independence(precision) == pytest.approx(found, abs=1e-5)


def test_both_sums_are_one_number():
    model = zoo.load("bernoulli_lvm", latent_dim=13).model
    x = zoo.load("bernoulli_lvm").data.test[:7]
    with torch.no_grad():
        whole = intractable_sum.one_piece(model, x)
    torch.testing.assert_close(intractable_sum.blocks(model, x), whole)


def test_extrapolation_has_its_coverage():
    """A line's interval holds a new observation as often as it says."""
    random, inside, times = np.random.default_rng(0), 0, 2000
    for _ in range(times):
        noise = 0.1 * random.standard_normal(9)
        seconds = {k: [2.0 ** (k - 20 + noise[i])] for i, k in enumerate(range(12, 20))}
        _, low, high = intractable_sum.extrapolated(seconds, 32)
        inside += low < 2.0 ** (12 + noise[-1]) < high
    sure = intractable_sum.SURE
    assert abs(inside / times - sure) < 3.3 * math.sqrt(sure * (1 - sure) / times)


def test_operators_are_counted():
    with sampling_speed.Counter() as counter:
        torch.ones(3).add(1).mul(2)
    assert counter.calls == 3


@pytest.fixture(scope="module")
def judged():
    return judge.Judge(judge.halves("digits", 10_000)[1])


def test_halves_share_no_image():
    data = zoo.data.load("digits").binarized()
    seen, kept = judge.halves("digits", 10_000)
    assert len(seen.train) + len(kept.train) == len(data.train)
    both = torch.cat([seen.train, kept.train])
    assert torch.equal(both.sum(0), data.train.sum(0))
    assert torch.equal(seen.test, data.test)


def test_judge_knows_digits_from_noise(judged):
    real = judged.data.test
    quality, scores = judged.quality(), judged.scores(real)
    assert quality["accuracy"] > 0.9
    assert quality["calibration_error"] < 0.05
    assert scores["away"] == pytest.approx(0.0, abs=1e-12)
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)).round()
    of_noise = judged.scores(noise)
    assert of_noise["away"] > 2 * quality["away_sd"]
    assert of_noise["information"] < scores["information"] - 0.5
    one = judged.scores(real[:1].expand(50, -1))
    assert one["information"] == pytest.approx(0.0, abs=1e-6)  # sure, and always of one digit


def test_pictures_with_latents_fixed_are_the_models_own():
    problem = zoo.load("gmvae")
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6)
    pictures = conditioning.expected(problem, 6, 0, y=y, z=z)
    torch.testing.assert_close(pictures, judge.decoded(problem, z))

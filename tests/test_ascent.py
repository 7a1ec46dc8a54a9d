"""Climbing many functions at once, and the bound by fixed noise, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
import zoo
from experiments.measure.ascent import climb
from experiments.measure.elbo import log_weights
from experiments.measure.fixed import FixedBound, best_logs, even_noise, expected
from experiments.measure.rows import fit_rows
from experiments.measure.streams import stream


def differentiated(function):
    """values and gradients of a function of points (n, p) and their places (n,)."""

    def both(points, index):
        points = points.detach().requires_grad_()
        values = function(points, index)
        (gradient,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), gradient

    return both


@pytest.mark.parametrize(
    ("dtype", "tolerance", "within", "share"),
    [(torch.float32, 1e-6, 0.1, 0.98), (torch.float64, 1e-12, 1e-4, 1.0)],
)
def test_every_start_climbs_the_banana(dtype, tolerance, within, share):
    """Along a curved valley to (1, 1); in float32 rounding ends a few climbs on its floor."""

    def banana(z, index):
        return -100 * (z[:, 1] - z[:, 0] ** 2) ** 2 - (1 - z[:, 0]) ** 2

    found = climb(differentiated(banana), 2 * torch.randn(500, 2, dtype=dtype), 300, tolerance)
    assert found.converged.all()
    assert found.values.min() > -0.1
    assert found.values.median() > -1e-4
    assert ((found.points - 1).abs() < within).all(-1).double().mean() >= share
    torch.testing.assert_close(found.values, banana(found.points, None))


def test_each_function_has_its_own_top_and_is_left_alone_there():
    factors = torch.randn(20, 6, 6)
    curvature, tops = factors @ factors.mT + 0.2 * torch.eye(6), torch.randn(20, 6)
    evaluated = torch.zeros(20)

    def bowls(z, index):
        evaluated[index] += 1
        off = z - tops[index]
        return -0.5 * (off * (curvature[index] @ off[..., None])[..., 0]).sum(-1)

    start = tops + torch.linspace(0, 20, 20)[:, None]
    found = climb(differentiated(bowls), start, 300, 1e-6)
    assert found.converged.all()
    assert found.values.min() > -1e-4
    assert evaluated[0] == 1
    assert evaluated.max() == found.passes


def test_a_value_that_is_not_finite_is_a_step_too_far():
    found = climb(
        differentiated(lambda z, _: (z.log() - z).sum(-1)), torch.full((3, 1), 9.0), 100, 1e-8
    )
    torch.testing.assert_close(found.points, torch.ones(3, 1), atol=1e-3, rtol=0)


def test_passes_end_a_climb_that_has_not_converged():
    found = climb(differentiated(lambda z, _: z.sum(-1)), torch.zeros(2, 1), 5, 1e-6)
    assert found.passes == 5
    assert not found.converged.any()


@pytest.mark.parametrize(("num_points", "size"), [(16, 2), (8, 4), (64, 20)])
def test_noise_has_the_moments_of_a_standard_normal(num_points, size):
    noise = even_noise(num_points, size)
    torch.testing.assert_close(noise.T @ noise / num_points, torch.eye(size).double())
    for moment in (noise, noise**3):
        torch.testing.assert_close(moment.mean(0), torch.zeros(size).double())
    assert not torch.equal(noise, even_noise(num_points, size, seed=1))


@pytest.mark.parametrize("name", ["mean_field", "full_rank"])
def test_the_bound_is_exact_where_log_p_is_quadratic(name):
    """E log N(x; W z + b, s) + log N(z; 0, 1) - log q under a normal q, in closed form."""
    problem = zoo.load("gaussian_lvm", latent_dim=3)
    guide, x = guides.build(name, problem), problem.data.train[:7]
    bound = FixedBound(problem, guide)
    rows = {n: torch.randn(7, width) for n, width in bound.widths.items()}
    with stream(0, x.device), torch.no_grad():
        found = bound.value(rows, x)
        q = next(guide.distribution(n, own) for n, own in rows.items())
        draws = log_weights(problem, guide.with_table(problem, 7, rows), x, 20_000).double()
        covariance = getattr(q, "covariance_matrix", None)
        covariance = torch.diag_embed(q.variance) if covariance is None else covariance
        prior = -0.5 * (q.mean.square().sum(-1) + covariance.diagonal(dim1=1, dim2=2).sum(-1))
        spread = problem.model.weight @ covariance @ problem.model.weight.T
        variance = problem.model.scale().square()
        likelihood = dist.Normal(
            problem.model.loc + q.mean @ problem.model.weight.T, variance.sqrt()
        )
        fit = (
            likelihood.log_prob(x).sum(-1)
            - 0.5 * spread.diagonal(dim1=1, dim2=2).sum(-1) / variance
        )
        exact = prior - 1.5 * math.log(2 * math.pi) + fit + q.entropy()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 20_000**0.5 + 1e-3).all()


def test_the_best_distribution_of_a_finite_latent_is_its_posterior():
    table = torch.randn(4, 9) * 5
    (logs,) = best_logs(table)
    torch.testing.assert_close(logs, table.log_softmax(0))
    torch.testing.assert_close(expected(table, [logs]), table.logsumexp(0))


def test_several_finite_latents_are_improved_in_turn():
    """Independent terms: the product of both posteriors is exact; else no change gains."""
    one, other = torch.randn(3, 1, 5), torch.randn(1, 4, 5)
    logs = best_logs(one + other)
    total = expected(one + other, logs)
    torch.testing.assert_close(total, (one + other).flatten(0, 1).logsumexp(0))
    table = 2 * torch.randn(3, 4, 5)
    logs = best_logs(table)
    for i in range(2):
        moved = list(logs)
        moved[i] = (logs[i] + 0.1 * torch.randn_like(logs[i])).log_softmax(0)
        assert (expected(table, moved) <= expected(table, logs) + 1e-5).all()


def test_a_mixture_with_a_continuous_part_finds_its_posterior():
    """c = 0, 1; z ~ N(6 c, 1); x ~ N(z, 1): given c the posterior of z is N((6 c + x) / 2, 1/2)."""

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(6.0 * c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.tensor([[-1.0], [0.5], [5.5], [7.0]])))
    x = problem.data.train
    best = fit_rows(problem, guides.build("mean_field", problem), x, restarts=2)
    assert best.converged
    rows = best.guide.rows(x)
    component = (x[:, 0] > 3).float()
    assert torch.equal(rows["c"].argmax(1).float(), component)
    torch.testing.assert_close(rows["z"][:, 0], (6 * component + x[:, 0]) / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(
        rows["z"][:, 1], torch.full((4,), -0.5 * math.log(2)), atol=0.02, rtol=0
    )


def test_the_best_of_mean_field_has_the_gap_of_its_precision():
    """1/2 (sum log P_ii - log det P) for every datum, to far less than a hundredth."""
    problem = zoo.load("gaussian_lvm", latent_dim=4)
    with torch.no_grad():
        problem.model.weight.normal_(std=0.3)
    x = problem.data.test[:50]
    posterior = problem.posterior(x)
    precision = posterior.precision_matrix
    expected_gap = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())
    best = fit_rows(problem, guides.build("mean_field", problem), x)
    bound = FixedBound(problem, best.guide)
    with stream(0, x.device), torch.no_grad():
        gap = problem.log_evidence(x) - bound.value(best.guide.rows(x), x)
    torch.testing.assert_close(gap, expected_gap.expand(50), atol=2e-3, rtol=0)

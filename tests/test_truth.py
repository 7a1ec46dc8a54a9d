"""Exact evidence and posterior against brute force, other libraries, and each other."""

import itertools
import math

import pyro
import pytest
import torch
from scipy import integrate
from sklearn.decomposition import PCA, FactorAnalysis

import zoo
from experiments.svi.run import reset
from tests.away import moved_problem
from zoo import gaussian_lvm
from zoo.truth import quadrature


def binary_rows(width):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=width)))


def test_evidence_of_binary_models_sums_to_one(double):
    x = binary_rows(10)
    for name, options in (("bernoulli_mixture", {"num_components": 3}), ("vae", {"latent_dim": 2})):
        problem = moved_problem(name, data=x, **options)
        total = problem.log_evidence(x).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-9 if name == "bernoulli_mixture" else 1e-6), name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gaussian_lvm", {"latent_dim": 1}),
        ("gaussian_lvm", {"latent_dim": 2, "noise": "diagonal"}),
        ("vae", {"latent_dim": 1, "observations": "normal"}),
    ],
)
def test_evidence_of_continuous_models_integrates_to_one(name, options, double):
    problem = moved_problem(name, data=torch.randn(20, 2), **options)
    axis = torch.linspace(-14, 14, 281)
    grid = torch.cartesian_prod(axis, axis)
    density = problem.log_evidence(grid).exp()
    stated = integral(density * problem.evidence_error(grid), axis)
    assert integral(density, axis) == pytest.approx(1, abs=1e-6 + stated)
    assert stated < 0.01


def integral(values, axis):
    table = values.reshape(len(axis), len(axis)).numpy()
    return integrate.simpson(integrate.simpson(table, x=axis.numpy()), x=axis.numpy())


def test_mixture_evidence_equals_brute_force(double):
    x = binary_rows(6)
    problem = moved_problem("bernoulli_mixture", data=x, num_components=4)
    model = problem.model
    total = sum(
        zoo.bernoulli_mixture.log_joint(model, x, torch.full((len(x),), k)).exp() for k in range(4)
    )
    torch.testing.assert_close(problem.log_evidence(x), total.log(), rtol=1e-10, atol=0)


def test_mixture_is_stable_for_certain_pixels():
    """p within 1e-40 of 0 and 1: evidence finite and right in float32."""
    problem = zoo.load("bernoulli_mixture", data=binary_rows(4), num_components=2)
    with torch.no_grad():
        problem.model.logits.copy_(torch.tensor([[100.0] * 4, [-100.0] * 4]))
    values = problem.log_evidence(torch.tensor([[1.0] * 4, [1.0, 1.0, 0.0, 0.0]]))
    expected = torch.tensor([math.log(0.5), -200.0])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("latent_dim", [1, 5])
def test_factor_analysis_agrees_with_scikit_learn(latent_dim, double):
    x = zoo.data.load("digits").train.double()[:, torch.arange(20, 60)]
    x = x[:, x.std(0) > 0.1]
    theirs = FactorAnalysis(latent_dim, max_iter=200).fit(x.numpy())
    problem = zoo.load("gaussian_lvm", data=x, latent_dim=latent_dim, noise="diagonal")
    model = problem.model.double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(theirs.components_.T))
        model.loc.copy_(torch.tensor(theirs.mean_))
        scale = torch.tensor(theirs.noise_variance_).sqrt()
        model.log_scale.copy_((scale - gaussian_lvm.MIN_SCALE).log())
    ours = problem.log_evidence(x).mean().item()
    assert ours == pytest.approx(theirs.score(x.numpy()), rel=1e-9)


def test_closed_form_ppca_agrees_with_scikit_learn_and_is_a_maximum(double):
    x = zoo.data.load("digits").train.double()
    problem = zoo.load("gaussian_lvm", data=x, latent_dim=4)
    model = gaussian_lvm.maximum_likelihood(problem.model.double(), x)
    # scikit-learn divides the covariance by n - 1; at our own parameters its model is ours.
    theirs = PCA(4).fit(x.numpy())
    theirs.explained_variance_ *= (len(x) - 1) / len(x)
    theirs.noise_variance_ *= (len(x) - 1) / len(x)
    assert problem.log_evidence(x).mean().item() == pytest.approx(theirs.score(x.numpy()), rel=1e-9)
    loss = gaussian_lvm.log_evidence(model, x).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-9


def test_posterior_is_the_joint_over_the_evidence(independent_problem, double):
    problem = independent_problem
    if problem.truth.posterior is None:  # that of several latents, or of none
        return
    problem.model.double()
    x = problem.data.test[:6].double()
    (latent,), posterior = problem.latents, problem.posterior(x)
    z = posterior.sample((5,))
    joint = torch.stack([problem.log_joint(problem.model, x, **{latent.name: draw}) for draw in z])
    error = problem.evidence_error(x).max().item()
    expected = joint - problem.log_evidence(x)
    torch.testing.assert_close(posterior.log_prob(z), expected, rtol=1e-8, atol=1e-8 + error)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_equals_algebra_for_a_linear_decoder(latent_dim, double):
    """A VAE with Normal pixels and no hidden layer is probabilistic PCA."""
    x = torch.randn(50, 5)
    vae = moved_problem("vae", data=x, latent_dim=latent_dim, hidden=(), observations="normal")
    with torch.no_grad():
        vae.model.log_scale.fill_(-0.5)
    lvm = zoo.load("gaussian_lvm", data=x, latent_dim=latent_dim)
    with torch.no_grad():
        lvm.model.double().weight.copy_(vae.model.decoder[0].weight)
        lvm.model.loc.copy_(vae.model.decoder[0].bias)
        lvm.model.log_scale.fill_(math.log(math.exp(-0.5) - gaussian_lvm.MIN_SCALE))
    exact = lvm.log_evidence(x)
    difference = (vae.log_evidence(x) - exact).abs()
    assert (difference <= vae.evidence_error(x) + 1e-9).all()
    assert difference.max() < 1e-6
    torch.testing.assert_close(vae.posterior(x).mean, lvm.posterior(x).mean, rtol=0, atol=1e-5)
    spread = lvm.posterior(x).variance
    torch.testing.assert_close(vae.posterior(x).variance, spread, rtol=0, atol=1e-5)


def test_quadrature_says_so_where_its_grid_is_too_coarse(double):
    """A posterior much narrower than the finest spacing: the stated error is not small."""
    width = 1e-4

    def needle(x, z):
        return -0.5 * ((x[:, :1] - z[:, 0]) / width) ** 2 - math.log(width)

    _, error = quadrature(needle, torch.tensor([[0.3], [0.4]]), 1)
    assert error.min() > 0.1


def test_grid_posterior_draws_have_its_moments(double):
    problem = moved_problem("vae", data=binary_rows(8), latent_dim=2)
    posterior = problem.posterior(problem.data.test[:4])
    draws = posterior.sample((20_000,))
    se = (posterior.variance / 20_000).sqrt()
    assert ((draws.mean(0) - posterior.mean).abs() < 5 * se).all()


def test_larger_vae_says_that_its_truth_is_bounded_only():
    problem = zoo.load("vae", latent_dim=3)
    assert problem.truth.level == "T2"
    with pytest.raises(zoo.TruthUnavailable, match="no exact log_evidence"):
        problem.log_evidence(problem.data.test)


def test_truth_is_recomputed_after_a_change_of_parameters(independent_problem):
    problem = independent_problem
    x = problem.data.test[:3]
    before = problem.log_evidence(x)
    pyro.set_rng_seed(1)
    reset(problem.model)
    assert not torch.equal(problem.log_evidence(x), before)

"""Mixtures against scikit-learn, scipy, EM and brute force; purity against counting."""

import itertools
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import integrate, special, stats
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.naive_bayes import CategoricalNB

import experiments
import guides
import zoo
from experiments.measure.labels import likeliest
from experiments.measure.measures import measure
from experiments.measure.purity import cluster_latent
from experiments.report import table
from experiments.settings import MeasureConfig
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from guides.oracle import Oracle
from tests.away import moved_problem
from zoo import gmvae, mixture_of_factor_analyzers
from zoo.distributions import CategoricalVector
from zoo.truth import FINEST, RADIUS

QUICK = MeasureConfig(search=False, num_draws=4, simulations=0, pareto_rows=5, pareto_draws=100)


def levels(width, num_levels):
    """Every row of whole numbers below num_levels."""
    rows = itertools.product(range(num_levels), repeat=width)
    return torch.tensor(list(rows)).to(torch.get_default_dtype())


def largest_gradient(problem):
    """Of the mean log evidence of the training rows, by any parameter."""
    loss = problem.truth.log_evidence(problem.model, problem.data.train).mean()
    gradients = torch.autograd.grad(loss, list(problem.model.parameters()))
    return max(gradient.abs().max().item() for gradient in gradients)


def put(model, **values):
    """Set parameters of a model in place."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(model, name).copy_(torch.as_tensor(value))


# Gaussian mixture


def gaussian_of(theirs, x, min_scale):
    """scikit-learn's mixture as ours."""
    count = theirs.n_components
    ours = zoo.load("gaussian_mixture", data=x, num_components=count, min_scale=min_scale)
    above = torch.tensor(theirs.covariances_).sqrt() - min_scale
    put(
        ours.model.double(),
        weight_logits=np.log(theirs.weights_),
        loc=theirs.means_,
        raw_scale=above.expm1().log(),
    )
    return ours


def test_gaussian_mixture_agrees_with_scikit_learn(double):
    x = zoo.data.load("digits").train.double()
    x = x[:, x.std(0) > 0.1]
    theirs = GaussianMixture(7, covariance_type="diag", random_state=0, reg_covar=1e-4).fit(x)
    ours = gaussian_of(theirs, x, min_scale=1e-3)
    np.testing.assert_allclose(ours.log_evidence(x), theirs.score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(ours.posterior(x).probs, theirs.predict_proba(x), atol=1e-9)


def test_gradient_vanishes_at_the_optimum_of_em(double):
    x = torch.randn(300, 2) + 4 * torch.randint(0, 3, (300, 1))
    settings = {"covariance_type": "diag", "tol": 1e-14, "max_iter": 5000, "reg_covar": 0.0}
    theirs = GaussianMixture(3, random_state=0, **settings).fit(x.numpy())
    assert theirs.converged_
    ours = gaussian_of(theirs, x, min_scale=1e-3)
    assert largest_gradient(ours) < 1e-6
    put(ours.model, loc=ours.model.loc + 0.01)
    assert largest_gradient(ours) > 1e-3


def test_scales_of_gaussian_components_have_a_floor():
    """A column that never changes, and a component on one row, would gain without end."""
    x = torch.cat([torch.randn(40, 1), torch.ones(40, 1)], 1)
    problem = zoo.load("gaussian_mixture", data=x, num_components=2, min_scale=0.2)
    put(problem.model, raw_scale=torch.full((2, 2), -1e4), loc=x[:2])
    assert (problem.model.scale() == 0.2).all()
    highest = -2 * math.log(0.2) - math.log(2 * math.pi)
    assert problem.log_evidence(x).max() <= highest + 1e-5


@pytest.mark.parametrize("name", ["gaussian_mixture", "mixture_of_factor_analyzers"])
def test_components_begin_at_rows_of_the_data(name):
    x = torch.tensor([0.0, 100.0, 200.0, 300.0])[:, None].expand(-1, 3) + 0.1 * torch.randn(4, 3)
    problem = zoo.load(name, data=x, num_components=4)
    distance = (problem.model.loc[:, None] - x).norm(dim=-1)
    assert distance.argmin(1).sort().values.tolist() == [0, 1, 2, 3]
    more = zoo.load(name, data=x, num_components=9)
    assert torch.isfinite(more.log_evidence(x)).all()
    assert len(more.model.loc.unique(dim=0)) == 9
    flat = zoo.load(name, data=torch.ones(5, 3), num_components=2)
    assert torch.isfinite(flat.log_evidence(torch.ones(5, 3))).all()


def test_copies_of_a_mixture_do_not_hold_its_data():
    problem = zoo.load("gaussian_mixture")
    names = set(problem.model.state_dict())
    assert names == {"weight_logits", "loc", "raw_scale"}
    assert len(problem.model.starts.rows) == 1000 < len(problem.data.train)


@pytest.mark.parametrize("name", ["gaussian_mixture", "mixture_of_factor_analyzers"])
def test_mixtures_of_normals_integrate_to_one(name, double):
    options = {"latent_dim": 1} if name == "mixture_of_factor_analyzers" else {"min_scale": 0.3}
    problem = moved_problem(name, data=torch.randn(20, 2), num_components=3, **options)
    axis = torch.linspace(-20, 20, 801)
    density = problem.log_evidence(torch.cartesian_prod(axis, axis)).exp().reshape(801, 801)
    total = integrate.simpson(integrate.simpson(density.numpy(), x=axis), x=axis)
    assert total == pytest.approx(1, abs=1e-8)


# Mixture of factor analyzers


def test_one_factor_analyzer_is_scikit_learns(double):
    """Its evidence, its posterior means, and that its EM ends where our gradient vanishes."""
    x = torch.randn(300, 1) @ torch.tensor([[1.0, -2.0, 0.5, 1.5]])
    x = x + torch.tensor([1.0, 0.5, 2.0, 0.7]) * torch.randn(300, 4) + 3
    theirs = FactorAnalysis(1, tol=1e-13, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    ours = zoo.load("mixture_of_factor_analyzers", data=x, num_components=1, latent_dim=1)
    scale = torch.tensor(theirs.noise_variance_).sqrt()
    put(
        ours.model.double(),
        weight=theirs.components_.T[None],
        loc=theirs.mean_[None],
        log_scale=(scale - mixture_of_factor_analyzers.MIN_SCALE).log(),
    )
    assert ours.log_evidence(x).mean().item() == pytest.approx(theirs.score(x.numpy()), rel=1e-9)
    assert largest_gradient(ours) < 1e-5
    found = mixture_of_factor_analyzers.place_posterior(ours.model, x, torch.zeros(300).long())
    np.testing.assert_allclose(found.mean.detach(), theirs.transform(x.numpy()), atol=1e-8)


def test_mixture_of_factor_analyzers_is_a_sum_of_normals(double):
    problem = moved_problem(
        "mixture_of_factor_analyzers", data=torch.randn(30, 5), num_components=4, latent_dim=2
    )
    model, x = problem.model, problem.data.train
    with torch.no_grad():
        covariance = model.weight @ model.weight.mT + model.scale().square().diag()
        weights = model.weight_logits.softmax(-1).tolist()
        each = [
            weights[k] * stats.multivariate_normal(model.loc[k], covariance[k]).pdf(x)
            for k in range(4)
        ]
    np.testing.assert_allclose(problem.log_evidence(x), np.log(sum(each)), rtol=1e-10)
    found = mixture_of_factor_analyzers.component_posterior(model, x).probs.detach()
    np.testing.assert_allclose(found, np.stack(each, -1) / sum(each)[:, None], atol=1e-12)


def test_posteriors_of_a_mixture_of_factor_analyzers_by_integration(double):
    """Of p(y given x) and of the moments of p(z given x, y), from log_joint on a line."""
    problem = moved_problem(
        "mixture_of_factor_analyzers", data=torch.randn(6, 3), num_components=3, latent_dim=1
    )
    model, x, line = problem.model, problem.data.train, torch.linspace(-9, 9, 4001)
    z = line[:, None, None].expand(-1, 6, 1)
    masses = []
    for k in range(3):
        y = torch.full((4001, 6), k)
        with torch.no_grad():
            joint = problem.log_joint(model, x, y=y, z=z).exp().numpy()
            posterior = mixture_of_factor_analyzers.place_posterior(model, x, y[0])
        mass, first, second = (
            integrate.simpson(line.numpy()[:, None] ** power * joint, x=line, axis=0)
            for power in range(3)
        )
        masses.append(mass)
        np.testing.assert_allclose(posterior.mean[:, 0], first / mass, atol=1e-9)
        variance = second / mass - (first / mass) ** 2
        np.testing.assert_allclose(posterior.variance[:, 0], variance, atol=1e-9)
    found = mixture_of_factor_analyzers.component_posterior(model, x).probs.detach()
    np.testing.assert_allclose(found.T, masses / sum(masses), atol=1e-9)
    np.testing.assert_allclose(problem.log_evidence(x), np.log(sum(masses)), atol=1e-9)


# Latent class


def test_latent_class_sums_to_one_and_to_its_parts(double):
    x = levels(4, 3)
    problem = moved_problem("latent_class", data=x, num_classes=3, num_levels=3)
    with torch.no_grad():
        p = problem.model.logits.softmax(-1).numpy()
        weights = problem.model.weight_logits.softmax(-1).numpy()
    each = np.array(
        [
            [weights[k] * math.prod(p[k, i, int(v)] for i, v in enumerate(row)) for k in range(3)]
            for row in x.tolist()
        ]
    )
    np.testing.assert_allclose(problem.log_evidence(x).exp(), each.sum(1), rtol=1e-10)
    np.testing.assert_allclose(problem.posterior(x).probs, each / each.sum(1)[:, None], rtol=1e-9)
    assert problem.log_evidence(x).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_latent_class_agrees_with_scikit_learns_naive_bayes(double):
    """A naive Bayes classifier is a latent class model whose classes are known."""
    data = zoo.load("latent_class", num_levels=5).data
    x = data.train.double()
    theirs = CategoricalNB(min_categories=5).fit(x.numpy(), data.train_labels)
    ours = zoo.load("latent_class", data=x, num_levels=5)
    logits = np.stack(theirs.feature_log_prob_, 1)
    put(ours.model.double(), weight_logits=theirs.class_log_prior_, logits=logits)
    joint = theirs.predict_joint_log_proba(x.numpy())
    np.testing.assert_allclose(ours.log_evidence(x), special.logsumexp(joint, 1), rtol=1e-10)
    np.testing.assert_allclose(ours.posterior(x).probs, theirs.predict_proba(x), atol=1e-10)


def test_gradient_vanishes_where_em_for_latent_classes_stands_still(double):
    x = torch.randint(0, 3, (200, 4)).double()
    x[:100] = x[:100].clamp(max=1)
    one_hot = (x[..., None] == torch.arange(3)).double()
    p, weights = torch.rand(2, 4, 3).softmax(-1), torch.tensor([0.5, 0.5])
    for _ in range(20_000):
        joint = torch.einsum("nil,kil->nk", one_hot, p.log()) + weights.log()
        share = joint.softmax(-1)
        before, weights = weights, share.mean(0)
        p = torch.einsum("nk,nil->kil", share, one_hot) / share.sum(0)[:, None, None]
        p = p.clamp(min=1e-12)
        if (weights - before).abs().max() < 1e-12:
            break
    ours = zoo.load("latent_class", data=x, num_classes=2, num_levels=3)
    put(ours.model.double(), weight_logits=weights.log(), logits=p.log())
    torch.testing.assert_close(ours.log_evidence(x), joint.logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert largest_gradient(ours) < 1e-7
    put(ours.model, logits=ours.model.logits + 0.1 * torch.randn(2, 4, 3))
    assert largest_gradient(ours) > 1e-3


def test_named_data_are_cut_into_levels_of_equal_width():
    pixels = zoo.data.load("digits").train
    assert torch.equal(zoo.load("latent_class", num_levels=17).data.train, 16 * pixels)
    assert torch.equal(zoo.load("latent_class", num_levels=2).data.train, (pixels >= 0.5).float())
    data = zoo.load("latent_class").data
    assert data.train.unique().tolist() == data.test.unique().tolist() == [0, 1, 2, 3]
    assert data.train_labels is not None


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((5, 1), (7,)), ((7,), (5, 1)), ((4, 5, 1), (7,)), ((6,), (6,)), ((), (6,))],
)
def test_categorical_vectors_by_matrix_products(rows, columns, double):
    """Densities of values (*columns, d) under logits (*rows, d, L), whichever is repeated."""
    logits, value = torch.randn(*rows, 3, 4), torch.randint(0, 4, (*columns, 3))
    logits[..., 0, 0] = -math.inf
    value[..., 0] = value[..., 0].clamp(min=1)
    value.view(-1, 3)[0, 0] = 0
    plain = torch.distributions.Categorical(logits=logits).log_prob(value.double()).sum(-1)
    found = CategoricalVector(logits).log_prob(value.double())
    torch.testing.assert_close(found, plain.expand_as(found), rtol=1e-12, atol=1e-12)
    assert torch.isneginf(found).any()
    assert torch.isfinite(found).any()


# Sums over components in the bound


@pytest.mark.parametrize("name", ["gaussian_mixture", "latent_class"])
def test_summing_out_the_component_gives_the_evidence(name, double):
    """Pyro's own enumeration of the model, whole and by minibatches."""
    x = levels(3, 3)
    options = {"num_levels": 3} if name == "latent_class" else {}
    problem = moved_problem(name, data=x, **options)
    bound = TraceEnum_ELBO(max_plate_nesting=1)
    every = problem.log_evidence(x)
    for index in (None, torch.tensor([4, 0, 9])):
        found = -bound.loss(config_enumerate(problem.model), lambda *args: None, x, index)
        part = every if index is None else every[index] * len(x) / 3
        assert found == pytest.approx(part.sum().item(), rel=1e-10)


@pytest.mark.parametrize("name", ["mixture_of_factor_analyzers", "gmvae"])
def test_enumerated_bound_is_the_expectation_over_both_latents(name, double):
    """sum_y q(y) [log p(x, y, z) - log q(y) - log q(z)] at the same draw of z, by hand."""
    x = levels(4, 2)
    problem = moved_problem(name, data=x, num_components=3, latent_dim=2)
    guide = guides.build("amortized", problem).double()
    config = resolve(FitConfig(batch_size=None), problem)
    assert config.estimator == "enumeration"
    with torch.no_grad():
        torch.manual_seed(3)
        loss, _ = elbo(config, problem).terms(problem.model, guide, x)
        q = {n: guide.distribution(n, rows) for n, rows in guide.rows(x).items()}
        torch.manual_seed(3)
        z, expected = q["z"].rsample(), 0.0
        for k in range(3):
            y = torch.full((len(x),), k)
            log_q = q["y"].log_prob(y) + q["z"].log_prob(z)
            joint = problem.log_joint(problem.model, x, y=y, z=z)
            expected = expected + (q["y"].probs[:, k] * (joint - log_q)).sum()
    assert -loss.item() == pytest.approx(expected.item(), rel=1e-10)


# Gaussian mixture VAE


def small_gmvae(latent_dim, width=6, **options):
    return moved_problem(
        "gmvae",
        data=levels(width, 2),
        latent_dim=latent_dim,
        num_components=3,
        hidden=(5,),
        **options,
    )


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_gmvae_of_one_standard_component_is_a_vae(latent_dim, double):
    x = levels(6, 2)
    plain = moved_problem("vae", data=x, latent_dim=latent_dim, hidden=(5,))
    mixed = zoo.load("gmvae", data=x, latent_dim=latent_dim, hidden=(5,), num_components=1)
    mixed.model.decoder = deepcopy(plain.model.decoder)
    zero = torch.zeros(1, latent_dim)
    put(mixed.model, loc=zero, log_scale=zero)
    torch.testing.assert_close(mixed.log_evidence(x), plain.log_evidence(x), rtol=0, atol=1e-10)
    found = gmvae.place_posterior(mixed.model, x)
    torch.testing.assert_close(found.mean, plain.posterior(x).mean, rtol=0, atol=1e-10)
    assert (gmvae.component_posterior(mixed.model, x).probs == 1).all()


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_gmvae_evidence_sums_to_one(latent_dim, double):
    problem = small_gmvae(latent_dim)
    x = problem.data.train
    assert problem.log_evidence(x).exp().sum().item() == pytest.approx(1, abs=1e-8)
    assert problem.evidence_error(x).max() < 0.01


def adaptive(model, x, power=0):
    """Integrals of z^power p(x, y, z) for every component, by adaptive quadrature: (K,)."""
    loc, scale = model.loc[:, 0].tolist(), model.log_scale[:, 0].exp().tolist()

    def density(z, k):
        with torch.no_grad():
            p = model.decoder(torch.tensor([z])).sigmoid().numpy()
        likelihood = np.prod(np.where(x.numpy() == 1, p, 1 - p))
        return z**power * likelihood * stats.norm(loc[k], scale[k]).pdf(z) / len(loc)

    return np.array(
        [
            integrate.quad(density, m - 9 * s, m + 9 * s, (k,), epsabs=1e-12, epsrel=1e-9)[0]
            for k, (m, s) in enumerate(zip(loc, scale, strict=True))
        ]
    )


def test_gmvae_truth_equals_adaptive_quadrature(monkeypatch, double):
    """The evidence, p(y given x), and the mean of p(z given x), all on a fine grid."""
    monkeypatch.setattr("zoo.truth.COARSEST", FINEST)
    problem = small_gmvae(1)
    put(problem.model, loc=torch.tensor([[-4.0], [0.5], [5.0]]))
    x = problem.data.train[[0, 21]]
    parts = np.stack([adaptive(problem.model, row) for row in x])
    np.testing.assert_allclose(problem.log_evidence(x), np.log(parts.sum(1)), atol=1e-8)
    found = gmvae.component_posterior(problem.model, x).probs.detach()
    np.testing.assert_allclose(found, parts / parts.sum(1)[:, None], atol=1e-8)
    first = np.stack([adaptive(problem.model, row, power=1) for row in x]).sum(1)
    mean = gmvae.place_posterior(problem.model, x).mean.detach()[:, 0]
    np.testing.assert_allclose(mean, first / parts.sum(1), atol=1e-8)


def test_stated_error_covers_components_too_narrow_for_the_grid(double):
    """One of three is narrower than the finest spacing: missed, and the error says so."""
    problem = small_gmvae(1)
    spacing = 2 * (30 + RADIUS) / (FINEST - 1)
    put(
        problem.model,
        loc=torch.tensor([[-30.0], [0.49 * spacing], [30.0]]),
        log_scale=torch.tensor([[0.0], [math.log(spacing / 30)], [0.0]]),
    )
    x = problem.data.train[[0, 21]]
    exact = np.log(np.stack([adaptive(problem.model, row) for row in x]).sum(1))
    off = np.abs(problem.log_evidence(x).numpy() - exact)
    assert off.max() > 0.05
    assert (off <= problem.evidence_error(x).numpy()).all()


def test_collapsed_gmvae_has_the_component_summed_out(double):
    problem, collapsed = small_gmvae(2), small_gmvae(2, collapsed=True)
    collapsed.model.load_state_dict(problem.model.state_dict())
    x = problem.data.train[:9]
    torch.testing.assert_close(collapsed.log_evidence(x), problem.log_evidence(x))
    z = torch.randn(4, 9, 2)
    each = [problem.log_joint(problem.model, x, z=z, y=torch.full((4, 9), k)) for k in range(3)]
    found = collapsed.log_joint(collapsed.model, x, z=z)
    torch.testing.assert_close(found, torch.stack(each).logsumexp(0))
    assert [latent.name for latent in collapsed.latents] == ["z"]
    assert collapsed.truth.posterior is not None
    assert problem.truth.posterior is None
    assert [r for r in experiments.check(collapsed, "full_rank") if not r.ok] == []


def test_larger_gmvae_has_bounds_where_it_is_collapsed():
    problem = zoo.load("gmvae", latent_dim=3, collapsed=True)
    assert problem.truth.level == zoo.load("gmvae", latent_dim=3).truth.level == "T2"
    with pytest.raises(zoo.TruthUnavailable, match="no exact log_evidence"):
        problem.log_evidence(problem.data.test)
    guide = guides.build("amortized", problem)
    setting = {"num_draws": 50, "num_units": 4, "num_temperatures": 5}
    found = experiments.evidence_interval(problem, guide, problem.data.test[:4], **setting)
    assert math.isfinite(found.lower.mean)
    assert math.isfinite(found.width)


# Purity


def by_counting(labels, clusters):
    right = 0
    for cluster in set(clusters):
        own = [label for label, c in zip(labels, clusters, strict=True) if c == cluster]
        right += max(own.count(label) for label in set(own))
    return right / len(labels)


@pytest.mark.parametrize("seed", range(5))
def test_purity_is_what_counting_finds(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(-2, 5, 60)
    clusters = np.where(random.random(60) < 0.5, labels + 7, random.integers(0, 9, 60))
    expected = by_counting(labels.tolist(), clusters.tolist())
    assert experiments.purity(labels, clusters) == pytest.approx(expected, abs=1e-12)
    named = experiments.purity(torch.tensor(labels), 1000 - 3 * torch.tensor(clusters))
    assert named == pytest.approx(expected, abs=1e-12)
    split = 2 * clusters + random.integers(0, 2, 60)
    assert experiments.purity(labels, split) >= expected
    assert experiments.purity(labels, list(range(60))) == 1
    assert (
        experiments.purity(labels, [0] * 60) == np.unique(labels, return_counts=True)[1].max() / 60
    )


@pytest.mark.parametrize(
    ("labels", "clusters", "sentence"),
    [
        ([1, 2], [1], "as many labels as clusters, at least one: got 2 and 1"),
        ([], [], "labels must be a list of whole numbers, got torch.float32"),
        ([1.0, 2.0], [1, 2], "labels must be a list of whole numbers, got torch.float32"),
        ([1, 2], [[1], [2]], r"clusters must be a list of whole numbers, .* shape \(2, 1\)"),
    ],
)
def test_bad_input_of_purity(labels, clusters, sentence):
    with pytest.raises(zoo.ZooError, match=sentence):
        experiments.purity(labels, clusters)


def quick_record(name, guide_name="amortized", **options):
    problem = zoo.load(name, **options)
    fit = experiments.fit(problem, guides.build(guide_name, problem), steps=30)
    return fit, measure(fit.problems[0], fit.guides[0], QUICK).record()


def test_purity_is_measured_where_there_are_labels_and_one_finite_latent():
    fit, record = quick_record("bernoulli_mixture")
    x, labels = fit.problem.data.test, fit.problem.data.test_labels
    clusters = fit.guides[0].rows(x)["z"].argmax(-1)
    assert record["held_out"]["purity"] == by_counting(labels.tolist(), clusters.tolist())
    assert "amortization_gap_per_datum" not in record["gaps"]  # search=False
    assert "total_gap_per_datum" in record["gaps"]
    _, of_two = quick_record("gmvae")
    assert 0 < of_two["held_out"]["purity"] <= 1
    _, of_rows = quick_record("bernoulli_mixture", "mean_field")
    assert of_rows["gaps"]["amortization_gap_per_datum"] == 0  # its rows are searched for
    for name, options in (
        ("gaussian_lvm", {}),
        ("gaussian_mixture", {"data": torch.randn(300, 3)}),
    ):
        assert "purity" not in quick_record(name, **options)[1]["held_out"]


def test_likeliest_value_of_a_guide_without_rows_is_the_commonest_draw():
    problem = moved_problem("bernoulli_mixture")
    problem.model.float()
    latent, x = cluster_latent(problem), problem.data.test
    posterior = problem.posterior(x)
    certain = posterior.probs.max(-1).values > 0.9
    assert certain.sum() > 50
    found = likeliest(problem, Oracle(problem), latent, x)
    assert torch.equal(found[certain], posterior.probs.argmax(-1)[certain])
    assert not hasattr(Oracle(problem), "rows")


def test_table_has_purity_where_a_model_has_it():
    def record(model, **held_out):
        return {
            "label": f"{model}-g",
            "seed": 0,
            "status": "ok",
            "config": {"guide": "g", "model": model, "fit": {"estimator": "e"}, "device": "cpu"}
            | {"measure": {"pareto_draws": 1, "simulations": 1}},
            "environment": {"device": "cpu"},
            "cost": {"steps": 1},
            "measures": {"held_out": held_out},
        }

    without, with_it = record("a"), record("b", purity=0.625)
    text = table.markdown_table("t", [without, with_it])
    assert "| generalization gap | purity |" in text
    assert "| b | g | – | 0.625 |" in text
    assert "| a | g | – | – |" in text
    assert "purity: share of held-out data" in text
    assert "purity" not in table.markdown_table("t", [without])
    assert "purity" not in table.csv_table([without])
    assert ",0.625," in table.csv_table([with_it])


# Bad input

ROWS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gaussian_mixture", {"num_components": 0}, "num_components must be a whole .* got 0"),
        ("gaussian_mixture", {"num_components": True}, "num_components .* got True"),
        ("gaussian_mixture", {"num_components": 2.0}, r"num_components .* got 2\.0"),
        ("gaussian_mixture", {"min_scale": 0}, "min_scale must be a positive number, got 0"),
        ("gaussian_mixture", {"min_scale": "small"}, "min_scale must be a positive number"),
        ("gaussian_mixture", {"min_scale": math.inf}, "min_scale must be a positive number"),
        ("gaussian_mixture", {"data": [[1.0, math.nan], [1, 2]]}, "nan at row 0, column 1"),
        ("mixture_of_factor_analyzers", {"num_components": -1}, "num_components .* got -1"),
        ("mixture_of_factor_analyzers", {"latent_dim": 65}, "from 1 to the data's 64, got 65"),
        ("mixture_of_factor_analyzers", {"latent_dim": "2"}, "latent_dim must be .* got '2'"),
        ("latent_class", {"num_classes": 1.5}, r"num_classes must be a whole .* got 1\.5"),
        ("latent_class", {"num_levels": 1}, "num_levels must be .* at least 2, got 1"),
        ("latent_class", {"num_levels": True}, "num_levels must be .* got True"),
        ("latent_class", {"data": ROWS, "num_levels": 3}, "observes 3, outside the support"),
        ("latent_class", {"data": -ROWS}, "observes -1, outside the support"),
        ("latent_class", {"data": ROWS / 2}, r"observes 0\.5, outside the support"),
        ("latent_class", {"data": (ROWS, ROWS + 2)}, "observes 4, outside the support"),
        ("gmvae", {"num_components": None}, "num_components must be .* got None"),
        ("gmvae", {"latent_dim": 0}, "latent_dim must be .* got 0"),
        ("gmvae", {"hidden": [0]}, "widths of at least 1"),
        ("gmvae", {"collapsed": 1}, "collapsed must be true or false, got 1"),
        ("gmvae", {"data": ROWS}, "observes 2, outside the support"),
    ],
)
def test_bad_options_end_with_one_line(name, options, sentence):
    with pytest.raises(zoo.ZooError, match=sentence) as caught:
        zoo.load(name, **options)
    assert "\n" not in str(caught.value)

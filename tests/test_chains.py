"""Trees, tables and chains, against brute force, numpy, scipy and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import chisquare, multivariate_normal
from sklearn.metrics import mutual_info_score

import experiments
import guides
import zoo
from experiments.measure.elbo import log_weights
from tests.away import moved_problem
from zoo import chow_liu
from zoo.chains import GaussianChain, StateChain

LADDER = {
    "independent_bernoulli": lambda n: n,
    "markov_chain": lambda n: 2 * n - 1,
    "chow_liu": lambda n: 2 * n - 1,
    "full_joint": lambda n: 2**n - 1,
}
"""Models of binary columns without latents, and their numbers of parameters."""
TREES = ["markov_chain", "chow_liu"]


def every_row(width):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=width)))


def dependent_rows(num_data, width, seed=0):
    """Rows of 0 and 1 whose columns hang together in various strengths."""
    rng = np.random.default_rng(seed)
    common = rng.random((num_data, 2)) @ rng.normal(size=(2, width))
    return torch.tensor((rng.normal(size=(num_data, width)) + 3 * common > 1).astype(np.float64))


def likeliest(name, x, **options):
    """A problem with the closed-form parameters for the rows x."""
    problem = zoo.load(name, data=x, **options)
    problem.model.double()
    problem.maximum_likelihood(problem.model, x)
    return problem


# The ladder: independent columns, a chain or a tree, the full table.


@pytest.mark.parametrize("width", [2, 5, 10])
@pytest.mark.parametrize("name", LADDER)
def test_every_rung_reports_its_count(name, width):
    problem = zoo.load(name, data=dependent_rows(30, width))
    assert problem.num_parameters == LADDER[name](width)


@pytest.mark.parametrize("name", LADDER)
def test_rungs_sum_to_one(name, double):
    x = every_row(6)
    problem = moved_problem(name, 0.8, data=dependent_rows(50, 6))
    assert problem.log_evidence(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert problem.truth.level == "T0"


def test_each_rung_of_the_ladder_is_likelier_than_the_one_below(double):
    x = dependent_rows(200, 6)
    found = [
        likeliest(name, x, smoothing=0.0).log_evidence(x).mean().item()
        for name in ("independent_bernoulli", "markov_chain", "chow_liu", "full_joint")
    ]
    assert found == sorted(found)
    assert np.diff(found).min() > 0.01


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
def test_chain_has_the_shares_that_counting_gives(smoothing, double):
    x = dependent_rows(60, 5)
    model = likeliest("markov_chain", x, smoothing=smoothing).model
    rows = x.numpy()
    for i, a in itertools.product(range(1, 5), (0, 1)):
        seen = [row[i] for row in rows if row[i - 1] == a]
        share = (sum(seen) + smoothing) / (len(seen) + 2 * smoothing)
        assert model.rest[i - 1, a].sigmoid().item() == pytest.approx(share, rel=1e-9)
    share = (sum(row[0] for row in rows) + smoothing) / (len(rows) + 2 * smoothing)
    assert model.first.sigmoid().item() == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_table_has_the_shares_that_counting_gives(smoothing, double):
    x = torch.cat([dependent_rows(60, 4), every_row(4)])
    problem = likeliest("full_joint", x, smoothing=smoothing)
    rows = [tuple(row) for row in x.tolist()]
    shares = [
        (rows.count(tuple(row)) + smoothing) / (len(rows) + 16 * smoothing)
        for row in every_row(4).tolist()
    ]
    found = problem.log_evidence(every_row(4)).exp().numpy()
    np.testing.assert_allclose(found, shares, rtol=1e-9)


@pytest.mark.parametrize("name", LADDER)
def test_closed_form_is_where_the_gradient_is_zero_and_svi_ends_below(name, double):
    """The likelihood is concave in the logits, so that no gradient means the maximum."""
    x = torch.cat([dependent_rows(80, 3), every_row(3)])
    problem = likeliest(name, x, smoothing=0.0)
    best = problem.log_joint(problem.model, x).mean()
    gradients = torch.autograd.grad(best, list(problem.model.parameters()))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-12
    start = zoo.load(name, data=x, smoothing=0.0)
    settings = {"steps": 300, "batch_size": None, "learning_rate": 0.3, "estimator": "pathwise"}
    fit = experiments.fit(start, guides.build("empty", start), **settings)
    missing = (best - fit.log_evidence(x).mean()).item()
    assert -1e-9 < missing < 5e-3


@pytest.mark.parametrize("name", TREES)
def test_a_fit_takes_the_closed_form(name):
    problem = zoo.load(name)
    fit = experiments.fit(problem, guides.build("empty", problem))
    assert fit.config.estimator == "closed_form"
    problem.maximum_likelihood(problem.model, problem.data.train)
    x = problem.data.test
    torch.testing.assert_close(fit.log_evidence(x)[0], problem.log_evidence(x))


@pytest.mark.parametrize("name", LADDER)
def test_columns_that_never_change_are_finite_without_smoothing(name):
    """Also given a parent's value that no row has."""
    x = dependent_rows(40, 5).float()
    x[:, 1], x[:, 3] = 0.0, 1.0
    problem = zoo.load(name, data=x, smoothing=0.0)
    problem.maximum_likelihood(problem.model, x)
    assert torch.isfinite(problem.log_evidence(every_row(5))).all()
    rows = [tuple(row) for row in x.tolist()]
    entropy = -sum(math.log(rows.count(row) / 40) for row in rows) / 40
    assert problem.log_evidence(x).mean().item() <= -entropy + 1e-4


@pytest.mark.parametrize("name", LADDER)
def test_draws_have_the_shares_that_the_density_says(name, double):
    problem = moved_problem(name, 0.8, data=dependent_rows(50, 4))
    draws = drawn(problem, 20_000)
    expected = problem.log_evidence(every_row(4)).exp().numpy()
    assert goodness(draws, every_row(4), expected) > 0.001


def drawn(problem, count):
    """Rows simulated from the model, (count, d)."""
    trace = zoo.testing.traced(problem.model, num_draws=count)
    return trace.nodes["x"]["value"][:, 0]


def goodness(draws, values, shares):
    """p-value of chi-square that draws (m, e) of the values (v, e) have those shares (v,)."""
    counts = np.array([(draws == value).all(-1).sum().item() for value in values])
    assert counts.sum() == len(draws)
    return chisquare(counts, shares / shares.sum() * len(draws)).pvalue


def test_a_table_of_twenty_columns(double):
    x = (torch.rand(500, 20) < 0.3).double()
    problem = likeliest("full_joint", x, smoothing=0.0)
    assert problem.num_parameters == 2**20 - 1
    rows = [tuple(row) for row in x.tolist()]
    expected = [math.log(rows.count(row) / 500) for row in rows]
    np.testing.assert_allclose(problem.log_evidence(x), expected, atol=1e-6)
    found = {tuple(row) for row in drawn(problem, 50).tolist()}
    assert found <= set(rows)


@pytest.mark.parametrize("columns", [1, 10, 20])
def test_table_keeps_the_most_balanced_columns(columns):
    problem = zoo.load("full_joint", columns=columns)
    digits = zoo.data.load("digits").binarized()
    distance = [abs(column.mean().item() - 0.5) for column in digits.train.T]
    kept = sorted(sorted(range(64), key=distance.__getitem__)[:columns])
    assert torch.equal(problem.data.train, digits.train[:, kept])
    assert torch.equal(problem.data.test, digits.test[:, kept])
    assert problem.data.image_shape is None
    own = zoo.load("full_joint", data=digits.train[:, kept])
    assert own.data.width == columns


# Chow & Liu's tree.


@pytest.mark.data
@pytest.mark.parametrize(("data", "expected"), [("nltcs", -6.7590), ("plants", -16.5240)])
def test_tree_has_the_published_test_likelihood(data, expected):
    problem = zoo.load("chow_liu", data=data)
    problem.maximum_likelihood(problem.model, problem.data.train)
    found = problem.log_evidence(problem.data.test).double().mean().item()
    assert found == pytest.approx(expected, abs=5e-5)


def labelled_trees(size):
    """The edges of every tree over 0 ... size - 1, from Pruefer's sequences."""
    for code in itertools.product(range(size), repeat=size - 2):
        degree = [1 + code.count(i) for i in range(size)]
        edges = []
        for node in code:
            leaf = min(i for i in range(size) if degree[i] == 1)
            edges.append(frozenset((leaf, node)))
            degree[leaf] -= 1
            degree[node] -= 1
        edges.append(frozenset(i for i in range(size) if degree[i] == 1))
        yield frozenset(edges)


def tree_log_likelihoods(rows, trees):
    """Mean log likelihood of the rows under each tree's own shares: {edges: nats}.

    The shares of every edge's pair, over those of the columns that several edges have.
    """
    width = rows.shape[1]
    own = [mean_log_share(rows[:, [i]]) for i in range(width)]
    pair = {
        frozenset(edge): mean_log_share(rows[:, edge])
        for edge in itertools.combinations(range(width), 2)
    }
    return {
        edges: sum(pair[edge] - sum(own[i] for i in edge) for edge in edges) + sum(own)
        for edges in trees
    }


def mean_log_share(rows):
    """Minus the entropy of the rows' own distribution."""
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return (counts / len(rows) * np.log(counts / len(rows))).sum()


@pytest.mark.parametrize(("width", "number"), [(5, 125), (6, 1296)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tree_is_the_best_of_all(width, number, seed, double):
    x = dependent_rows(150, width, seed)
    likelihoods = tree_log_likelihoods(x.numpy(), labelled_trees(width))
    assert len(likelihoods) == number
    problem = likeliest("chow_liu", x, smoothing=0.0)
    pairs = zip(problem.model.order[1:].tolist(), problem.model.parent.tolist(), strict=True)
    best = max(likelihoods.values())
    assert likelihoods[frozenset(map(frozenset, pairs))] == pytest.approx(best, abs=1e-12)
    assert problem.log_evidence(x).mean().item() == pytest.approx(best, abs=1e-9)


def test_mutual_information_agrees_with_scikit_learn(double):
    x = dependent_rows(100, 5)
    found = chow_liu.mutual_information(chow_liu.pair_counts(x), 100, 0.0)
    expected = [[mutual_info_score(a, b) for a in x.T.numpy()] for b in x.T.numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_smoothing_is_that_many_rows_of_each_pair_of_values(double):
    """Every vector once has each pair of values 2^(d - 2) times."""
    x = dependent_rows(40, 5)
    smoothed = likeliest("chow_liu", x, smoothing=8.0)
    appended = likeliest("chow_liu", torch.cat([x, every_row(5)]), smoothing=0.0)
    rows = every_row(5)
    torch.testing.assert_close(smoothed.log_evidence(rows), appended.log_evidence(rows))
    plain = likeliest("chow_liu", x, smoothing=0.0)
    assert (plain.log_evidence(rows) - appended.log_evidence(rows)).abs().max() > 0.1


def test_density_does_not_depend_on_the_root(double):
    """Another column comes first: another root, the same density."""
    x, rows = dependent_rows(150, 6), every_row(6)
    expected = likeliest("chow_liu", x).log_evidence(rows)
    for shift in range(1, 6):
        turned = likeliest("chow_liu", x.roll(shift, 1)).log_evidence(rows.roll(shift, 1))
        torch.testing.assert_close(turned, expected)


def test_maximum_likelihood_learns_the_tree_too(double):
    x, other = dependent_rows(150, 6, seed=0), dependent_rows(150, 6, seed=1)
    problem = zoo.load("chow_liu", data=x)
    before = problem.model.parent.clone()
    problem.model.double()
    problem.maximum_likelihood(problem.model, other)
    assert not torch.equal(problem.model.parent, before)
    expected = likeliest("chow_liu", other).log_evidence(every_row(6))
    torch.testing.assert_close(problem.log_evidence(every_row(6)), expected)


def test_tree_as_built_is_that_of_the_training_rows():
    x = dependent_rows(150, 6)
    problem, best = zoo.load("chow_liu", data=x), likeliest("chow_liu", x)
    assert torch.equal(problem.model.order, best.model.order)
    assert torch.equal(problem.model.parent, best.model.parent)


# Hidden Markov model.

SMALL = {"steps": 4, "num_states": 3}


def small_hmm(num_data=9, **options):
    options = SMALL | options
    width = 2 * options["steps"]
    rows = torch.randint(2, (num_data, width)).to(torch.get_default_dtype())
    return moved_problem("hmm", 0.8, data=rows, **options)


def paths(steps, num_states):
    return torch.tensor(list(itertools.product(range(num_states), repeat=steps)))


def path_probabilities(model, x):
    """p(x, path) of every row and path by products of probabilities: numpy (n, paths)."""
    softmax = lambda logits: np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # noqa: E731
    first, steps, emission = (
        parameter.detach().numpy()
        for parameter in (model.first_logits, model.step_logits, model.logits)
    )
    first, steps, p = softmax(first), softmax(steps), 1 / (1 + np.exp(-emission))
    rows = x.numpy().reshape(len(x), model.steps, -1)
    found = []
    for path in paths(model.steps, len(first)).tolist():
        each = first[path[0]] * np.prod([steps[i, j] for i, j in itertools.pairwise(path)])
        emitted = np.where(rows == 1, p[path], 1 - p[path]).prod((1, 2))
        found.append(each * emitted)
    return np.stack(found, 1)


def test_hmm_is_the_sum_over_all_paths(double):
    problem = small_hmm()
    x = every_row(8)
    expected = path_probabilities(problem.model, x).sum(1)
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(problem.log_evidence(x).exp(), expected, rtol=1e-10)


def test_hmm_posterior_is_that_of_all_paths(double):
    problem = small_hmm()
    x, every = problem.data.train, paths(**SMALL)
    joint = path_probabilities(problem.model, x)
    expected = joint / joint.sum(1, keepdims=True)
    posterior = problem.posterior(x)
    found = posterior.log_prob(every[:, None]).exp().T
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    mean, square = expected @ every.numpy(), expected @ every.numpy() ** 2
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(posterior.variance, square - mean**2, rtol=1e-9)
    assert torch.equal(posterior.enumerate_support(expand=False)[:, 0], every)


def test_hmm_posterior_draws_paths_in_their_shares(double):
    problem = small_hmm(num_data=3)
    posterior = problem.posterior(problem.data.train)
    draws = posterior.sample((20_000,))
    joint = path_probabilities(problem.model, problem.data.train)
    assert draws.shape == (20_000, 3, 4)
    for row in range(3):
        assert rare_pooled(draws[:, row], paths(**SMALL), joint[row]) > 0.0003


def rare_pooled(draws, values, shares):
    """p-value of chi-square as in `goodness`, values that are rare counted together."""
    shares = shares / shares.sum()
    counts = np.array([(draws == value).all(-1).sum().item() for value in values])
    rare = shares * len(draws) < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(shares[~rare], shares[rare].sum()) * len(draws)
    return chisquare(counts[expected > 0], expected[expected > 0]).pvalue


@pytest.mark.parametrize("backward", [False, True])
def test_chain_of_states_draws_from_its_density(backward, double):
    """Of a batch, with tables of their own at each step."""
    chain = StateChain(torch.randn(2, 3), torch.randn(2, 2, 3, 3), backward)
    every = paths(3, 3)
    shares = chain.log_prob(every[:, None]).exp()
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-12)
    draws = chain.sample((20_000,))
    for row in range(2):
        assert rare_pooled(draws[:, row], every, shares[:, row].numpy()) > 0.0005
        marginal = [
            [shares[every[:, t] == k, row].sum().item() for k in range(3)] for t in range(3)
        ]
        np.testing.assert_allclose(chain.marginals()[row], marginal, rtol=1e-10)
    one = chain.expand((5, 2))
    assert one.sample().shape == (5, 2, 3)
    assert one.log_prob(draws[0]).shape == (5, 2)
    torch.testing.assert_close(one.mean, chain.mean.expand(5, 2, 3))


@pytest.mark.parametrize(("steps", "num_states", "finite"), [(4, 8, True), (8, 4, False)])
def test_hmm_of_few_paths_is_enumerated(steps, num_states, finite):
    problem = zoo.load("hmm", steps=steps, num_states=num_states)
    (latent,) = problem.latents
    assert latent.num_values == (4096 if finite else None)
    assert latent.event_shape == (steps,)


@pytest.mark.parametrize("num_states", [2, 3])
def test_hmm_that_is_enumerated_holds_together(num_states):
    problem = small_hmm(20, num_states=num_states, steps=3)
    problem.model.float()
    assert [r for r in experiments.check(problem, ["mean_field", "amortized"]) if not r.ok] == []


def test_hmm_of_one_state_has_independent_columns(double):
    problem = small_hmm(num_states=1)
    x, p = problem.data.train, problem.model.logits.sigmoid().detach().repeat(1, 4)
    expected = torch.where(x > 0, p, 1 - p).log().sum(-1)
    torch.testing.assert_close(problem.log_evidence(x), expected)
    assert (problem.posterior(x).sample((3,)) == 0).all()


@pytest.mark.parametrize("num_states", [2, 3])
def test_hmm_bound_by_enumeration_is_the_divergence_from_the_posterior(num_states, double):
    """ELBO = log p(x) - KL(q | posterior), with KL a sum over paths."""
    problem = small_hmm(num_states=num_states)
    x = problem.data.train
    guide = guides.build("mean_field", problem).double()
    with torch.no_grad():
        guide.sources["z"].rows.weight.normal_()
    every = paths(4, num_states)[:, None]
    log_q = guide.distribution("z", guide.rows(x)["z"].detach()).log_prob(every)
    gap = (log_q.exp() * (log_q - problem.posterior(x).log_prob(every))).sum(0)
    config = experiments.svi.config.FitConfig(estimator="enumeration", batch_size=None)
    bound = experiments.svi.estimators.elbo(
        experiments.svi.estimators.resolve(config, problem), problem
    )
    loss = bound.loss_and_grads(problem.model, guide, x)
    assert -loss == pytest.approx((problem.log_evidence(x) - gap).sum().item(), rel=1e-9)


def test_factorized_guide_cannot_say_that_states_hang_together():
    """Two states that surely switch, and data that say nothing: the paths 01 and 10 are equally
    likely, and the best product of two distributions takes one of them, log 2 below."""
    problem = zoo.load("hmm", data=every_row(4), steps=2, num_states=2)
    with torch.no_grad():
        problem.model.logits.zero_()
        problem.model.step_logits.copy_(torch.tensor([[-9.0, 9.0], [9.0, -9.0]]))
    x = problem.data.train
    fitted = experiments.fit_rows(problem, guides.build("mean_field", problem), x, restarts=2)
    gap = problem.log_evidence(x) - log_weights(problem, fitted.guide, x, 100).mean(0)
    assert gap.mean().item() == pytest.approx(math.log(2), abs=0.01)


# Linear Gaussian state space model.

SHAPES = [(4, 2, 3), (3, 3, 1), (2, 1, 4)]


def small_ssm(steps, latent_dim, columns, **options):
    rows = torch.randn(7, steps * columns)
    options |= {"steps": steps, "latent_dim": latent_dim}
    return moved_problem("linear_gaussian_ssm", 0.4, data=rows, **options)


def joint_normal(model):
    """Mean and covariance of (z, x) from innovations and noise: numpy, by a matrix of their sum."""
    a, c, b, sd = (
        value.detach().double().numpy()
        for value in (model.transition, model.weight, model.loc, model.scale())
    )
    k, steps = len(a), model.steps
    states = np.zeros((steps * k, steps * k))  # z = states @ innovations
    for t, s in itertools.product(range(steps), repeat=2):
        if s <= t:
            block = np.linalg.matrix_power(a, t - s)
            states[t * k : (t + 1) * k, s * k : (s + 1) * k] = block
    seen = np.kron(np.eye(steps), c) @ states
    both = np.concatenate([states, seen])
    covariance = both @ both.T
    covariance[steps * k :, steps * k :] += np.kron(np.eye(steps), np.diag(sd**2))
    return np.concatenate([np.zeros(steps * k), np.tile(b, steps)]), covariance


@pytest.mark.parametrize("shape", SHAPES)
def test_kalman_filter_is_the_marginal_of_the_joint_normal(shape, double):
    problem = small_ssm(*shape)
    x, size = problem.data.train, shape[0] * shape[1]
    mean, covariance = joint_normal(problem.model)
    expected = multivariate_normal(mean[size:], covariance[size:, size:]).logpdf(x.numpy())
    np.testing.assert_allclose(problem.log_evidence(x), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothed_states_are_the_joint_normal_given_the_data(shape, double):
    problem = small_ssm(*shape)
    x, size = problem.data.train, shape[0] * shape[1]
    mean, covariance = joint_normal(problem.model)
    gain = np.linalg.solve(covariance[size:, size:], covariance[size:, :size]).T
    loc = (x.numpy() - mean[size:]) @ gain.T
    given = covariance[:size, :size] - gain @ covariance[size:, :size]
    posterior = problem.posterior(x)
    np.testing.assert_allclose(posterior.mean, loc, atol=1e-10)
    for found in posterior.covariance_matrix:
        np.testing.assert_allclose(found, given, atol=1e-10)
    far = torch.ones(size, size).triu(2 * shape[1]).bool()
    assert posterior.precision_matrix[0][far].abs().sum() < 1e-9


def test_state_space_model_integrates_to_one(double):
    problem = small_ssm(2, 1, 1)
    axis = torch.linspace(-30, 30, 601)
    density = problem.log_evidence(torch.cartesian_prod(axis, axis)).exp().reshape(601, 601)
    total = integrate.simpson(integrate.simpson(density, x=axis.numpy()), x=axis.numpy())
    assert total == pytest.approx(1, abs=1e-8)


def test_filter_is_right_in_float32_for_little_noise():
    """A thousandth of the states' spread."""
    problem = small_ssm(6, 2, 3)
    problem.model.float()
    with torch.no_grad():
        problem.model.log_scale.fill_(-20.0)
    x = 5 * torch.randn(20, 18)
    mean, covariance = joint_normal(problem.model)
    expected = multivariate_normal(mean[12:], covariance[12:, 12:]).logpdf(x.double().numpy())
    np.testing.assert_allclose(problem.log_evidence(x), expected, rtol=1e-4)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_prior_of_states_is_the_dense_normal(latent_dim, double):
    torch.manual_seed(2)
    chain = GaussianChain(0.6 * torch.randn(latent_dim, latent_dim), 4)
    problem = zoo.load(
        "linear_gaussian_ssm", data=torch.randn(9, 8), steps=4, latent_dim=latent_dim
    )
    with torch.no_grad():
        problem.model.double().transition.copy_(chain.transition)
    size = 4 * latent_dim
    covariance = joint_normal(problem.model)[1][:size, :size]
    draws = chain.expand((5,)).rsample((8000,)).reshape(-1, size)
    dense = multivariate_normal(np.zeros(size), covariance)
    np.testing.assert_allclose(chain.log_prob(draws[:9]), dense.logpdf(draws[:9].numpy()))
    np.testing.assert_allclose(chain.variance, covariance.diagonal())
    assert (chain.mean == 0).all()
    whitened = draws @ torch.linalg.inv(torch.linalg.cholesky(torch.tensor(covariance))).T
    products = whitened[:, :, None] * whitened[:, None, :]
    off = (products.mean(0) - torch.eye(size)) / (products.std(0) / math.sqrt(len(draws)))
    assert off.abs().max() < 4.5


def test_diagonal_guide_has_a_gap_that_a_full_rank_one_has_not(double):
    problem = small_ssm(4, 2, 3)
    x = problem.data.train
    precision = problem.posterior(x).precision_matrix[0]
    expected = (precision.diagonal().log().sum() - precision.logdet()) / 2
    assert expected > 0.1
    for name, gap in (("mean_field", expected.item()), ("full_rank", 0.0)):
        fitted = experiments.fit_rows(problem, guides.build(name, problem).double(), x).guide
        found = problem.log_evidence(x) - log_weights(problem, fitted, x, 2000)
        se = found.mean(1).std().item() / math.sqrt(len(found))
        assert found.mean().item() == pytest.approx(gap, abs=4 * se + 0.02)


# Bad input.

ROWS = torch.randint(2, (6, 24)).float()
SMOOTHING = "smoothing must be a number of at least 0, got "
STEPS = "steps must be a whole number of at least 2, got "
STATES = "num_states must be a whole number of at least 1, got "
COLUMNS = "columns must be a whole number from 1 to 20, got "
REFUSED = [
    *[
        (name, {"smoothing": value}, f"{SMOOTHING}{value!r}")
        for name in ("markov_chain", "chow_liu", "full_joint")
        for value in (-1, True, "1", None, math.nan, math.inf)
    ],
    *[
        (name, {"steps": value}, f"{STEPS}{value!r}")
        for name in ("hmm", "linear_gaussian_ssm")
        for value in (1, 0, -4, True, 2.0, "8", None)
    ],
    *[
        (name, {"steps": 7}, "steps must divide the data's 64 columns evenly, got 7")
        for name in ("hmm", "linear_gaussian_ssm")
    ],
    *[("hmm", {"num_states": v}, f"{STATES}{v!r}") for v in (0, True, 2.5, "4", None)],
    *[
        ("linear_gaussian_ssm", {"latent_dim": v}, f"from 1 to the data's 64, got {v!r}")
        for v in (0, 65, True, 1.5, "2", None)
    ],
    *[("full_joint", {"columns": v}, f"{COLUMNS}{v!r}") for v in (0, 21, True, 1.5, "10")],
    (
        "full_joint",
        {"data": ROWS[:, :3], "columns": 4},
        "columns must be a whole number from 1 to 3",
    ),
    (
        "full_joint",
        {"data": ROWS},
        r"a table of 2\^24 vectors is too large: take at most 20 columns",
    ),
    *[
        (name, {"data": ROWS[:, :1]}, "at least 2 columns, got 1: independent_bernoulli is its")
        for name in ("markov_chain", "chow_liu")
    ],
    *[
        (name, {"data": 2 * ROWS[:, :8]}, "observes 2, outside the support")
        for name in ("markov_chain", "chow_liu", "full_joint", "hmm")
    ],
    *[
        (name, {"data": 0.5 * ROWS[:, :8]}, "observes 0.5, outside the support")
        for name in ("markov_chain", "chow_liu", "full_joint", "hmm")
    ],
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_bad_input_is_one_line(name, options, message):
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.load(name, **options)
    assert "\n" not in str(caught.value)

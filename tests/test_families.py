"""Densities of the families beyond the diagonal normal, each against an answer of its own."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.distributions import constraints

import experiments
import guides
import zoo
from experiments.measure.elbo import log_weights
from experiments.measure.fixed import FixedBound
from experiments.measure.gaps import own_and_best
from guides.families import FullRank, LowRank, choose
from guides.flow import KINDS, Flow
from guides.laplace import Laplace
from guides.noted import LowRankNormal
from guides.placed import even_noise
from guides.structured import ChainOfNumbers, ChainOfStates
from zoo.problem import Latent

REAL = constraints.real_vector
SUPPORTS = {
    "vector": (REAL, (3,)),
    "matrix": (constraints.independent(constraints.real, 2), (2, 2)),
    "positive": (constraints.positive, ()),
    "simplex": (constraints.simplex, (3,)),
}


def perturbed(module, scale=0.3):
    """A module away from its start, so that no part of it is idle."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.double()


def slope(function, noise):
    """log |det| of a map's derivative at each row of noise (n, d), by autograd alone."""
    found = []
    for one in noise:
        jacobian = torch.autograd.functional.jacobian(lambda u: function(u).flatten(), one)
        # A simplex has one number fewer than entries: any of them may be left out.
        found.append(jacobian[: len(one)].det().abs().log())
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_flow_starts_and_starts_anew_as_a_normal(kind):
    """Whatever the row's context: Normal(loc, scale)."""
    flow = Flow(Latent("z", REAL, (3,), ("datum",)), kind).double()
    row = torch.randn(5, flow.num_parameters, dtype=torch.float64)
    z, plain = torch.randn(5, 3).double(), dist.Normal(row[:, :3], row[:, 3:6].exp()).to_event(1)
    torch.testing.assert_close(flow(row).log_prob(z), plain.log_prob(z))
    perturbed(flow)
    assert (flow(row).log_prob(z) - plain.log_prob(z)).abs().min() > 1e-3
    for module in flow.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.testing.assert_close(flow(row).log_prob(z), plain.log_prob(z))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_flow_density_is_that_of_its_map(kind, support):
    """log q = log Normal(noise) - log |det dz / dnoise|, both cached and computed from values."""
    latent = Latent("z", SUPPORTS[support][0], SUPPORTS[support][1], ("datum",))
    if support == "positive" and kind != "spline":
        with pytest.raises(zoo.ZooError, match="an affine flow of one number is a normal"):
            Flow(latent, kind)
        return
    flow = perturbed(Flow(latent, kind, hidden=(8,)))
    row = torch.randn(flow.num_parameters, dtype=torch.float64)
    noise = torch.randn(5, flow.size, dtype=torch.float64)
    to_value = flow(row).dist.transform.inv
    expected = dist.Normal(0, 1).log_prob(noise).sum(-1) - slope(to_value, noise)
    q = flow(row)
    torch.testing.assert_close(q.log_prob(to_value(noise)), expected)
    z = q()
    torch.testing.assert_close(q.log_prob(z), q.dist.log_prob(z))
    assert latent.support.check(z).all()


@pytest.mark.parametrize("kind", KINDS)
def test_flow_density_integrates_to_one(kind):
    flow = perturbed(Flow(Latent("z", REAL, (2,), ("datum",)), kind, hidden=(8,)))
    row = torch.randn(flow.num_parameters, dtype=torch.float64) * 0.5
    axis = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    with torch.no_grad():
        total = flow(row).log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(total.item() - 1) < 5e-3


def test_flow_bends_with_the_datum():
    """Two rows that differ in their context alone have densities of different shape."""
    flow = perturbed(Flow(Latent("z", REAL, (2,), ("datum",)), hidden=(8,)))
    row = torch.zeros(2, flow.num_parameters, dtype=torch.float64)
    row[1, -flow.context :] = 2.0
    noise = torch.randn(50, 1, 2, dtype=torch.float64)
    one, other = flow(row).expand((50, 2)).dist.transform.inv(noise.expand(50, 2, 2)).unbind(1)
    assert ((one - other) - (one - other).mean(0)).abs().max() > 0.01


def test_low_rank_density():
    """Against a dense covariance that is filled here; with all ranks every covariance is there."""
    latent = Latent("z", REAL, (4,), ("datum",))
    family = LowRank(latent, rank=2)
    row = torch.randn(6, family.num_parameters)
    loc, log_scale, factor = row[:, :4], row[:, 4:8], row[:, 8:].reshape(6, 4, 2)
    factor = log_scale.exp()[..., None] * factor
    covariance = factor @ factor.mT + torch.diag_embed((2 * log_scale).exp())
    z = torch.randn(6, 4)
    expected = dist.MultivariateNormal(loc, covariance).log_prob(z)
    torch.testing.assert_close(family(row).log_prob(z), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [201, 1000])
@pytest.mark.parametrize("largest", [1.0, 30.0, 100.0])
def test_low_rank_of_many_numbers_against_a_dense_normal(size, largest):
    """Also where U is so large that float32 loses the numbers' own noise beside it."""
    torch.manual_seed(0)
    family = LowRank(Latent("z", REAL, (size,), ("datum",)), rank=2)
    row = torch.randn(family.num_parameters)
    row[2 * size :] = largest * (1 - 0.3 * torch.rand(2 * size))
    loc, log_scale, factor = row.double().split([size, size, 2 * size])
    factor, scale = factor.reshape(size, 2), log_scale.exp()
    lower = scale[:, None] * torch.linalg.cholesky(factor @ factor.mT + torch.eye(size).double())
    dense = dist.MultivariateNormal(loc, scale_tril=lower)
    q = family(row)
    z = q.rsample((50,))
    for found in (q.log_prob(z), q.log_prob(z.clone())):  # by the draws' noise, and without it
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), dense.log_prob(z.double()), rtol=1e-6, atol=5e-3)
    torch.testing.assert_close(q.variance.double(), dense.variance, rtol=1e-4, atol=0)
    torch.testing.assert_close(q.mean, row[:size])


def test_noise_makes_draws_of_a_low_rank_normal_with_its_covariance():
    """The map from noise to draws is linear: its matrix R has R R' = I + U U', scaled."""
    factor, scale = torch.randn(4, 6, 2).double(), torch.rand(4, 6).double() + 0.5
    q = LowRankNormal(torch.zeros(4, 6).double(), scale, factor)
    columns = q.from_noise(torch.eye(6).double()[:, None].expand(6, 4, 6)).movedim(0, -1)
    expected = factor @ factor.mT + torch.eye(6).double()
    expected = scale[:, :, None] * expected * scale[:, None]
    torch.testing.assert_close(columns @ columns.mT, expected)
    z, dense = torch.randn(3, 4, 6).double(), dist.MultivariateNormal(q.loc, expected)
    torch.testing.assert_close(q.expand((3, 4)).log_prob(z), dense.log_prob(z))
    assert q.expand((3, 4)).sample().shape == (3, 4, 6)


def chain(steps, width, batch):
    """A family of chains of numbers, random rows, and the dense normals that they stand for."""
    family = ChainOfNumbers(Latent("z", REAL, (steps * width,), ("datum",), length=steps))
    rows = torch.randn(batch, family.num_parameters, dtype=torch.float64)
    loc, log_scale, below, moves = (
        part.reshape(batch, steps if i < 3 else steps - 1, -1)
        for i, part in enumerate(rows.split(family.parts, -1))
    )
    dense = torch.zeros(batch, steps * width, steps * width, dtype=torch.float64)
    for n in range(batch):
        for t in range(steps):
            own = torch.eye(width, dtype=torch.float64)
            own[*torch.tril_indices(width, width, -1)] = below[n, t]
            own = log_scale[n, t].exp()[:, None] * own
            block = slice(t * width, (t + 1) * width)
            if t > 0:
                move = moves[n, t - 1].reshape(width, width)
                dense[n, block] = move @ dense[n, (t - 1) * width : t * width]
            dense[n, block, block] = own
    covariance = dense @ dense.mT
    return family, rows, dist.MultivariateNormal(loc.reshape(batch, -1), covariance), dense


@pytest.mark.parametrize("width", [1, 2, 3])
def test_chain_of_numbers_against_a_dense_normal(width):
    torch.manual_seed(0)
    family, rows, dense, lower = chain(4, width, 5)
    q, z = family(rows), torch.randn(7, 5, 4 * width, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), dense.log_prob(z))
    noise = torch.randn(7, 5, 4 * width, dtype=torch.float64)
    expected = dense.loc + torch.einsum("nij,snj->sni", lower, noise)
    torch.testing.assert_close(q.from_noise(noise), expected)
    torch.testing.assert_close(q.expand((7, 5)).log_prob(z), dense.log_prob(z))
    # The precision is block tridiagonal: states two steps apart do not meet in it.
    precision = dense.precision_matrix
    assert precision[:, : 2 * width, 3 * width :].abs().max() < 1e-6 * precision.abs().max()


def test_chain_of_states_holds_the_posterior_of_a_hidden_markov_model():
    """Smoothed tables put into the rows of the family: log q is the exact posterior's."""
    problem = zoo.load("hmm")
    x = problem.data.train[:20]
    posterior = problem.posterior(x)
    family = ChainOfStates(problem.latents[0])
    first, steps = posterior.first, posterior.steps
    assert posterior.backward
    # The family runs forward: turn the tables by Bayes' rule.
    marginals = posterior.marginals()
    turned = []
    for t in range(family.steps - 1):
        later = steps[:, family.steps - 2 - t].mT  # log p(z_t given z_(t+1)), z_t in the rows
        turned.append(later + marginals[:, t + 1, None, :].log())
    rows = torch.cat([marginals[:, 0].log(), torch.stack(turned, 1).flatten(1)], -1)
    assert first.shape == (20, family.num_states)
    z = posterior.sample((50,))
    torch.testing.assert_close(
        family(rows).log_prob(z), posterior.log_prob(z), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", ["gaussian_lvm", "linear_gaussian_ssm"])
def test_laplace_of_a_normal_posterior_is_the_posterior(name):
    problem = zoo.load(name)
    x = problem.data.train[:30]
    found, exact = Laplace(problem).distribution(x), problem.posterior(x)
    torch.testing.assert_close(found.loc, exact.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        found.covariance_matrix, exact.covariance_matrix, rtol=1e-3, atol=1e-4
    )


def poisson(x=None, index=None):
    """log rate ~ Normal(1, 2); counts ~ Poisson."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(torch.ones(1), 2.0).to_event(1))
        pyro.sample("x", dist.Poisson(z[..., 0].exp()), obs=None if rows is None else rows[:, 0])


def test_laplace_against_scipy():
    """Mode and curvature of Poisson counts: of z - 1 over 2, squared, and x z - exp z."""
    x = torch.tensor([[0.0], [1.0], [7.0], [200.0], [10_000.0]])
    found = Laplace(zoo.Problem(poisson, zoo.data.as_dataset(x))).distribution(x)
    for row, loc, variance in zip(x[:, 0].tolist(), found.loc, found.variance, strict=True):
        top = minimize_scalar(lambda z, row=row: (z - 1) ** 2 / 8 - row * z + math.exp(z))
        assert abs(loc.item() - top.x) < 1e-3
        assert abs(variance.item() - 1 / (0.25 + math.exp(top.x))) < 1e-3 * variance.item() + 1e-5


def positive(x=None, index=None):
    """rate ~ Gamma(3, 2); counts ~ Poisson: the posterior is Gamma(3 + x, 3)."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Gamma(torch.tensor(3.0), torch.tensor(2.0)))
        pyro.sample("x", dist.Poisson(z), obs=None if rows is None else rows[:, 0])


def test_laplace_counts_the_slope_of_the_map_into_the_support():
    """In log z the posterior Gamma(a, b) has its mode at log(a / b) and curvature a."""
    x = torch.tensor([[0.0], [4.0], [30.0]])
    found = Laplace(zoo.Problem(positive, zoo.data.as_dataset(x))).distribution(x)
    a = 3 + x[:, 0]
    torch.testing.assert_close(found.loc[:, 0], (a / 3).log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variance[:, 0], 1 / a, rtol=1e-3, atol=1e-4)


def squared(x=None, index=None):
    """z ~ Normal(0, 1), x ~ Normal(z^2, 1): at z = 0 the density's curvature is 1 - 2 x."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z.square(), 1.0), obs=None if rows is None else rows[:, 0])


def test_laplace_is_at_most_twice_as_wide_as_the_prior():
    """The posterior's curvature where it is a quarter of the prior's or more, else that quarter."""
    x = torch.tensor([[-1.0], [0.3], [0.45], [0.525]])  # Newton's method begins, and stays, at 0
    found = Laplace(zoo.Problem(squared, zoo.data.as_dataset(x))).distribution(x)
    torch.testing.assert_close(found.loc, torch.zeros(4, 1))
    torch.testing.assert_close(found.variance[:, 0], torch.tensor([1 / 3, 2.5, 4.0, 4.0]))


def test_importance_of_the_posterior_has_no_gap():
    problem = zoo.load("gaussian_lvm")
    x = problem.data.train[:50]
    guide = guides.build("importance", problem, base="oracle", num_draws=3)
    weights = log_weights(problem, guide, x, 4)
    expected = problem.log_evidence(x).expand(4, -1)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-3)


def test_importance_states_the_bound_of_its_draws():
    """log p - log q is the log of the mean weight of K draws: its mean against plain torch."""
    problem, num_draws = zoo.load("gaussian_lvm"), 5
    x = problem.data.train[:40]
    base = guides.build("amortized", problem)
    perturbed(base, 0.1).float()
    guide = guides.build("importance", problem, num_draws=num_draws)
    guide.base.load_state_dict(base.state_dict())
    with torch.no_grad():
        own = log_weights(problem, guide, x, 4000).double()
        z = base.distribution("z", base.rows(x)["z"])
        draws = z.sample((4000, num_draws))
        log_w = problem.log_joint(problem.model, x, draws) - z.log_prob(draws)
    plain = log_w.double().logsumexp(1) - math.log(num_draws)
    se = (own.var(0) / len(own) + plain.var(0) / len(plain)).sqrt()
    z_scores = (own.mean(0) - plain.mean(0)) / se
    assert z_scores.abs().max() < 4.5  # 40 data, at 0.1 % in all


def test_importance_keeps_draws_by_their_weights():
    """With many draws the kept ones have the posterior's mean and variance."""
    problem = zoo.load("gaussian_lvm")
    with torch.no_grad():
        problem.model.weight.mul_(3.0)
    x = problem.data.train[:3]
    guide = guides.build("importance", problem, num_draws=500)
    with torch.no_grad(), pyro.plate("draws", 400, dim=-2):
        values = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    exact = problem.posterior(x)
    se = exact.variance.sqrt() / math.sqrt(400)
    assert ((values.mean(0) - exact.mean).abs() / se).max() < 5
    torch.testing.assert_close(values.var(0), exact.variance, rtol=0.25, atol=0)


def test_importance_trains_its_base_by_the_bound():
    """Mean gradients of the guide's parameters against those of log mean w, by other draws."""
    problem, num_draws, repeats = zoo.load("gaussian_lvm"), 4, 3000
    x = problem.data.train[:5]
    guide = guides.build("importance", problem, base="linear", num_draws=num_draws)
    bias = guide.base.sources["z"].network[-1].bias

    def gradients(bound):
        """Of the sum over data of `repeats` bounds, one after the other."""
        return torch.stack([torch.autograd.grad(bound(), bias)[0] for _ in range(repeats // 50)])

    def own():
        with pyro.plate("draws", 50, dim=-2):
            trace = pyro.poutine.trace(guide).get_trace(x)
        with pyro.plate("draws", 50, dim=-2):
            model = pyro.poutine.trace(pyro.poutine.replay(problem.model, trace)).get_trace(x)
        return (model.log_prob_sum() - trace.log_prob_sum()) / 50

    def plain():
        q = guide.base.distribution("z", guide.base.rows(x)["z"])
        z = q.rsample((num_draws, 50))
        log_w = problem.log_joint(problem.model, x, z) - q.log_prob(z)
        return log_w.logsumexp(0).sum() / 50

    first, second = gradients(own), gradients(plain)
    se = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    assert ((first.mean(0) - second.mean(0)).abs() / se).max() < 4.5


def test_refinement_against_a_step_by_hand():
    """One step on a conjugate normal, whose bound's gradient is known without draws."""
    problem = zoo.load("gaussian_lvm")
    guide = guides.build("semi_amortized", problem, hidden=(), steps=1, draws=16)
    x = problem.data.train[:10]
    start = guide.sources["z"](x, None)
    loc, log_scale = start.detach().chunk(2, -1)
    posterior = problem.posterior(x)
    precision = posterior.precision_matrix
    slope_loc = -((loc - posterior.mean)[:, None] @ precision)[:, 0]
    slope_scale = 1 - precision.diagonal(dim1=-2, dim2=-1) * (2 * log_scale).exp()
    slopes = torch.cat([slope_loc, slope_scale], -1)
    moves = 0.1 * slopes
    lengths = moves.norm(dim=-1, keepdim=True)
    assert lengths.min() < 1 < lengths.max()  # one that is whole and one that is shortened
    expected = start.detach() + moves / lengths.clamp(min=1)
    torch.testing.assert_close(guide.rows(x)["z"].detach(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("draws", [1, 7])
def test_draws_of_a_refinement_come_in_pairs(draws):
    with pytest.raises(zoo.ZooError, match=f"must be even, got {draws}"):
        guides.build("semi_amortized", zoo.load("gaussian_lvm"), draws=draws)


def test_refinement_trains_the_encoder_through_its_steps():
    """d row / d bias is not one: a step pulls rows together, by the rates times the curvature."""
    problem = zoo.load("gaussian_lvm")
    with torch.no_grad():
        problem.model.weight.mul_(0.3)
    guide = guides.build("semi_amortized", problem, hidden=(), steps=1, draws=16)
    x = problem.data.train[:1]
    with torch.no_grad():  # near the posterior, so that the step is not shortened
        for parameter in guide.sources["z"].network.parameters():
            parameter.zero_()
        guide.sources["z"].network[-1].bias[:2] = problem.posterior(x).mean[0]
    bias = guide.sources["z"].network[-1].bias
    (slope_,) = torch.autograd.grad(guide.rows(x)["z"][0, 0], bias)
    precision = problem.posterior(x).precision_matrix[0]
    torch.testing.assert_close(
        slope_[0].item(), 1 - 0.1 * precision[0, 0].item(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("size", [1, 3, 10])
def test_few_points_of_even_noise_have_mean_zero(size):
    noise = even_noise(8, size)
    assert noise.mean(0).abs().max() < 1e-12
    if size <= 4:
        torch.testing.assert_close(noise.T @ noise / 8, torch.eye(size, dtype=noise.dtype))


def test_options_of_guides_that_mean_nothing_get_one_line():
    problem = zoo.load("gaussian_lvm", latent_dim=3)
    with pytest.raises(zoo.ZooError, match="rank must be at most 3, the numbers of q, got 4"):
        guides.build("low_rank", problem, rank=4)
    with pytest.raises(zoo.ZooError, match="base_options must be a table"):
        guides.build("importance", problem, base_options=3)
    with pytest.raises(zoo.ZooError, match="importance with more num_draws"):
        guides.build("importance", problem, base="importance")
    for name in ("gmvae", "hierarchical_vae"):
        with pytest.raises(zoo.TruthUnavailable, match="guides that suit: amortized, "):
            guides.build("oracle", zoo.load(name))
    with pytest.raises(zoo.ZooError, match="is a chain; guides that suit: amortized, constant, li"):
        guides.build("structured", zoo.load("bernoulli_lvm"))


def test_every_rank_is_full_rank():
    """At rank = latent_dim both searches end at the same bound for every datum."""
    problem = zoo.load("gaussian_lvm", latent_dim=3)
    x = problem.data.test[:40]
    bounds = []
    for name, options in (("low_rank", {"rank": 3}), ("full_rank", {})):
        guide = guides.build(name, problem, **options)
        own, _ = own_and_best(problem, guide, x)
        with torch.no_grad():
            bounds.append(log_weights(problem, own, x, 200).mean(0))
    # The search stops where a step foretells little: of several ranks, on a ridge of equal normals.
    assert (bounds[0] - bounds[1]).mean().abs() < 0.005
    torch.testing.assert_close(*bounds, rtol=0, atol=0.03)
    exact = problem.log_evidence(x)
    assert (exact - bounds[1]).abs().max() < 0.01
    assert isinstance(own.families["z"], FullRank)


@pytest.mark.slow
def test_newtons_method_arrives_at_the_mode():
    """Of a trained VAE of 10 latents: the slope is below 0.1 at 99 of 100 held-out digits."""
    problem = zoo.load("vae", latent_dim=10)
    settings = {"steps": 1000, "batch_size": 256, "learning_rate": 0.005}
    fit = experiments.fit(problem, guides.build("amortized", problem), **settings)
    problem, x = fit.problems[0], problem.data.test
    guide = Laplace(problem)
    mode = guide.distribution(x).loc.requires_grad_()
    height = guide.log_density(problem.model, x, mode).sum()
    (slope,) = torch.autograd.grad(height, mode)
    assert (slope.norm(dim=-1) < 0.1).double().mean() >= 0.99


@pytest.mark.parametrize("name", ["mean_field", "full_rank", "low_rank"])
def test_a_copied_guide_has_the_same_q(name):
    """`fit` copies guides: their q must still be plain normals, with means and entropies."""
    guide = guides.build(name, zoo.load("vae"))
    rows = guide.rows(guide.sources["z"].rows.weight)
    plain, copied = (type(g.distribution("z", rows["z"])) for g in (guide, copy.deepcopy(guide)))
    assert plain is copied


def nearly_singular(family, rows):
    """Rows of a family whose map from noise to draws loses the noise of all numbers but one."""
    far = rows.clone()
    size = family.size if isinstance(family, FullRank) else sum(family.parts[:2]) // 2
    far[:, 2 * size :] = 1e7
    return far


@pytest.mark.parametrize("kind", [FullRank, ChainOfNumbers])
def test_log_q_of_own_draws_is_right_for_nearly_singular_maps(kind):
    """Else a search for the best q finds those: their log q is too low by millions of nats."""
    latent = Latent("z", constraints.real_vector, (6,), ("datum",), length=3)
    family = kind(latent)
    rows = nearly_singular(family, family.initial_row(1))
    q, num_draws = family(rows), 4000
    found = q.log_prob(q.rsample((num_draws,)))
    entropy = 3 * math.log(2 * math.pi * math.e)  # of six numbers whose scales are 1
    assert abs(found.mean() + entropy) < 4 * math.sqrt(3 / num_draws)


@pytest.mark.parametrize("guide_name", ["full_rank", "low_rank", "structured"])
def test_no_q_of_the_family_has_a_bound_above_the_evidence(guide_name):
    """By the fixed noise of the search for the best of the family."""
    problem = zoo.load("linear_gaussian_ssm")
    x, guide = problem.data.train[:3], guides.build(guide_name, problem)
    bound = FixedBound(problem, guide)
    name = guide.latents[0].name
    start = guide.families[name].initial_row(3)
    for size in (0.0, 1.0, 10.0, 100.0):
        rows = {name: torch.cat([start[:, :32], size * torch.ones_like(start[:, 32:])], -1)}
        assert (bound.value(rows, x) < problem.log_evidence(x) + 0.01).all()


@pytest.mark.parametrize("size", [16, 201])
@pytest.mark.parametrize("largest", [1.0, 30.0, 100.0])
def test_the_bound_of_a_low_rank_posterior_is_the_evidence(size, largest):
    """Of a Gaussian model that sees every direction but the first, e, where the prior stays.

    With weights sqrt(c) (I - e e') the posterior's covariance is (I + c e e') / (1 + c).
    """
    problem = zoo.load("gaussian_lvm", data=torch.zeros(3, size), latent_dim=size)
    c, e = largest**2 * size, torch.full((size,), size**-0.5)
    with torch.no_grad():
        problem.model.weight.copy_(math.sqrt(c) * (torch.eye(size) - torch.outer(e, e)))
    x, guide = problem.data.train, guides.build("low_rank", problem, rank=2)
    row = [torch.zeros(size), torch.full((size,), -0.5 * math.log(1 + c))]
    factors = torch.full((2 * size,), largest / math.sqrt(2))  # two of the same direction
    rows = {"z": torch.cat([*row, factors]).expand(3, -1)}
    evidence = problem.truth.log_evidence(copy.deepcopy(problem.model).double(), x.double())
    found = FixedBound(problem, guide).value(rows, x)
    torch.testing.assert_close(found.double(), evidence, rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("transforms", [1, 2, 3])
def test_a_flow_of_splines_has_one(size, transforms):
    flow = Flow(Latent("z", REAL, (size,), ("datum",)), "spline", transforms)
    kinds = ["MonotonicRQSTransform" in repr(one) for one in flow.maps]
    assert kinds[-1]
    assert kinds[0] == (1 in (size, transforms))


def test_a_bernoulli_latent_is_categorical_in_floats():
    latent = Latent("z", dist.Bernoulli(0.5).support, (), ("datum",), torch.tensor([0.0, 1.0]))
    rows = torch.randn(5, 2)
    q, same = choose("auto", latent)(rows), dist.Categorical(logits=rows)
    for value in (0, 1):
        expected = same.log_prob(torch.tensor(value))
        torch.testing.assert_close(q.log_prob(torch.tensor(float(value))), expected)
    assert q.sample().dtype == torch.float32

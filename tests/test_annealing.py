"""Annealed importance sampling, its transitions and two-sided bounds, against exact answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import integrate

import experiments
import guides
import zoo
from experiments.measure import annealing, bidirectional
from experiments.measure.annealing import Setting, ais, anneal, gibbs, sigmoid
from experiments.measure.bidirectional import bdmc, evidence_interval, simulated_rows
from experiments.measure.evidence import iwae
from experiments.measure.hmc import TARGET, Tuning, equal_steps, hmc, leapfrog, pilot
from experiments.measure.path import path
from experiments.measure.streams import stream
from tests.test_evidence import near, one_mean, oracle, small_vae  # noqa: F401

SHORT = {"num_temperatures": 6, "num_leapfrog": 2}
MIDDLING = {"num_temperatures": 20, "num_leapfrog": 2}  # the inverse weights' tails are light


def linear(num_rows=400, latent_dim=2):
    """A Gaussian LVM in float64 with directions of length about 1, and rows drawn from it."""
    problem = zoo.load("gaussian_lvm", data=torch.zeros(8, 4), latent_dim=latent_dim)
    with torch.no_grad():
        problem.model.double().weight.copy_(0.7 * torch.randn(4, latent_dim))
        problem.model.log_scale.fill_(-0.3)
    problem = problem.having(data=problem.data.map(torch.Tensor.double))
    x, latents = simulated_rows(problem, num_rows, seed=0)
    return problem, x, latents


def of_support(prior, local=True):
    """A model whose latent has that prior, seen through the sum of its entries with noise."""

    def model(x=None, index=None):
        z = None if local else pyro.sample("z", prior)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior) if local else z
            seen = z if not prior.event_shape else z[..., 0]
            pyro.sample("x", dist.Normal(seen, 0.5), obs=None if rows is None else rows[:, 0])

    return zoo.Problem(model, zoo.data.as_dataset(torch.rand(3, 1)))


SUPPORTS = {
    "real": (dist.Normal(0.5, 1.0), 1),
    "positive": (dist.Gamma(2.0, 1.0), 1),
    "interval": (dist.Beta(2.0, 3.0), 1),
    "simplex": (dist.Dirichlet(torch.tensor([1.5, 2.0, 3.0])), 2),
    "vector": (dist.Gamma(2.0, torch.ones(2)).to_event(1), 2),
}


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("local", [True, False])
def test_densities_over_real_vectors_integrate(support, local, double):
    """The start to 1, the joint to the evidence, which is an integral over the support."""
    prior, size = SUPPORTS[support]
    problem = of_support(prior, local)
    x = problem.data.train[:1].double()
    axis = torch.linspace(-25, 12, 2000 if size == 1 else 500)
    points = torch.cartesian_prod(*[axis] * size).reshape(-1, 1, size)
    with stream(0, x.device):
        state = path(problem, x).evaluate(points)
    cell = (axis[1] - axis[0]) ** size
    draws = prior.sample((400_000,))
    seen = draws if not prior.event_shape else draws[..., 0]
    likelihood = dist.Normal(seen, 0.5).log_prob(x[0, 0]).exp()
    se = likelihood.std() / math.sqrt(len(likelihood))
    assert (state.log_start.exp().sum() * cell).item() == pytest.approx(1, abs=2e-3)
    assert abs(state.log_joint.exp().sum() * cell - likelihood.mean()) < 4 * se + 1e-3


@pytest.mark.parametrize("local", [True, False])
def test_values_and_vectors_are_inverse(local, double):
    problem = of_support(SUPPORTS["simplex"][0], local)
    with stream(0, problem.data.train.device):
        way = path(problem, problem.data.train)
        state = way.draw(5)
        again = way.at(way.values(state.u)[0])
    assert state.u.shape == ((5, 3, 2) if local else (5, 1, 2))
    torch.testing.assert_close(again.u, state.u)


def test_gradients_are_those_of_finite_differences(double):
    problem, x, _ = linear(3)
    with stream(0, x.device):
        way = path(problem, x, near(problem, x).double())
        state = way.draw(2)
        for beta in (0.0, 0.3, 1.0):
            for i in range(2):
                nudge = torch.zeros_like(state.u)
                nudge[..., i] = 1e-5
                above, below = (way.evaluate(state.u + s * nudge) for s in (1, -1))
                slope = (above.log_density(beta) - below.log_density(beta)) / 2e-5
                torch.testing.assert_close(slope, state.gradient(beta)[..., i])


def test_leapfrog_is_reversible_and_of_second_order(double):
    problem, x, _ = linear(5)
    with stream(0, x.device):
        way = path(problem, x)
        state = way.draw(3)
        momentum = torch.randn_like(state.u)

        def energy(state, momentum):
            return 0.5 * momentum.square().sum(-1) - state.log_density(0.6)

        end, momentum_there = leapfrog(way, state, momentum, 0.6, 0.2, 7)
        back, momentum_back = leapfrog(way, end, -momentum_there, 0.6, 0.2, 7)
        torch.testing.assert_close(back.u, state.u)
        torch.testing.assert_close(momentum_back, -momentum)
        errors = [
            (energy(*leapfrog(way, state, momentum, 0.6, step, steps)) - energy(state, momentum))
            for step, steps in ((0.02, 30), (0.01, 60))
        ]
    ratio = errors[0].abs().sum() / errors[1].abs().sum()
    assert ratio.item() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_hmc_leaves_the_tempered_density_invariant(beta, double):
    """One row: the density at beta is normal with precision 1 + beta w^2 / scale^2."""
    problem, x, _ = linear(1, latent_dim=1)
    weight, scale = problem.model.weight[:, 0].detach(), problem.model.scale().detach()
    precision = 1 + beta * weight.square().sum() / scale**2
    loc = beta * (x[0] @ weight) / scale**2 / precision
    with stream(0, x.device):
        way = path(problem, x)
        state = way.at({"z": (loc + torch.randn(40_000, 1, 1) / precision.sqrt())})
        tuning = Tuning(torch.full((1,), 1.6) / precision.sqrt(), torch.ones(1, 1))
        for _ in range(4):
            state, acceptance = hmc(way, state, beta, tuning, 2)
    assert 0.2 < acceptance.mean() < 0.95
    z = (state.u.flatten() - loc) * precision.sqrt()
    se = 1 / math.sqrt(len(z))
    assert abs(z.mean()) < 4 * se
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2) * se
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96) * se


def test_hmc_moves_every_chain_by_its_own_acceptance(double):
    problem, x, _ = linear(4)
    with stream(0, x.device):
        way = path(problem, x)
        before = way.draw(500)
        tuning = Tuning(torch.tensor([0.01, 0.3, 1.0, 30.0]), torch.ones(4, 2))
        after, acceptance = hmc(way, before, 1.0, tuning, 3)
    rates = acceptance.mean(0)
    assert rates[0] > 0.999
    assert rates[3] < 0.05
    moved = (after.u != before.u).any(-1).double()
    assert ((moved.mean(0) - rates).abs() < 4 * 0.5 / math.sqrt(500)).all()
    torch.testing.assert_close(after.log_joint, way.evaluate(after.u).log_joint)


def test_pilot_meets_its_target(double):
    problem, x, _ = linear(20)
    with stream(0, x.device):
        way = path(problem, x)
        plan = pilot(way, 60, 8, 3)
        state, rates = way.draw(30), []
        for beta, tuning in zip(plan.betas, plan.tunings, strict=True):
            state, acceptance = hmc(way, state, beta, tuning, 3)
            rates.append(acceptance.mean())
    assert torch.stack(rates[10:]).mean().item() == pytest.approx(TARGET, abs=0.1)


def test_temperatures_rise_from_zero_to_one(double):
    problem, x, _ = linear(4)
    with stream(0, x.device):
        plans = [pilot(path(problem, x), number, 4, 1).betas for number in (1, 2, 80)]
    for betas, number in [*zip(plans, (1, 2, 80), strict=True), (sigmoid(7), 7)]:
        assert len(betas) == number + 1
        assert (betas[0], betas[-1]) == (0, 1)
        assert betas == sorted(set(betas))


def test_steps_are_of_equal_length():
    """Where the spread is 1 / (beta + c) equal steps are equal ratios of beta + c."""
    trial = torch.linspace(0, 1, 4001, dtype=torch.float64) ** 4
    betas = equal_steps(trial, 1 / (trial + 0.01), 10)
    ratios = (betas[1:] + 0.01) / (betas[:-1] + 0.01)
    torch.testing.assert_close(ratios, torch.full_like(ratios, 101**0.1), rtol=0.02, atol=0)


def unbiased(ratios):
    """Whether (chains, units) ratios of weight to truth have mean 1, units independent."""
    each = ratios.mean(0)
    se = each.std() / math.sqrt(len(each))
    assert 0.001 < se < 0.08
    assert abs(each.mean() - 1) < 4 * se


def test_weights_are_unbiased_up_and_down_the_path(double):
    """So few steps that the weights spread, and transitions matter."""
    problem, x, latents = linear(1500)
    exact = problem.log_evidence(x)
    with stream(1, x.device):
        way = path(problem, x)
        truth = {"z": latents["z"][None]}
        up, down = anneal(way, Setting(num_chains=8, **MIDDLING), truth)
    assert up.std(0).mean() > 0.3
    unbiased((up - exact).exp())
    unbiased((exact - down).exp())


def test_weights_over_a_finite_latent_are_unbiased(double):
    problem = zoo.load(
        "bernoulli_mixture", data=(torch.rand(9, 6) < 0.5).double(), num_components=4
    )
    with torch.no_grad():
        problem.model.double().logits.copy_(torch.randn(4, 6))
        problem.model.weight_logits.copy_(torch.randn(4))
    x, latents = simulated_rows(problem, 1500, seed=0)
    exact = problem.log_evidence(x)
    with stream(1, x.device):
        way = path(problem, x)
        truth = {"z": latents["z"][None]}
        up, down = anneal(way, Setting(num_chains=20, num_temperatures=3), truth)
    unbiased((up - exact).exp())
    unbiased((exact - down).exp())


def test_gibbs_draws_from_the_tempered_density(double):
    problem = zoo.load(
        "bernoulli_mixture", data=(torch.rand(9, 6) < 0.5).double(), num_components=3
    )
    x = problem.data.train[:1]
    with torch.no_grad():
        problem.model.double().logits.copy_(torch.randn(3, 6))
        problem.model.weight_logits.copy_(torch.tensor([2.0, 0.0, -1.0]))
    with stream(0, x.device):
        way = path(problem, x)
        drawn = gibbs(way, way.draw(20_000), 0.4).u.flatten()
    model = problem.model
    prior = model.weight_logits.log_softmax(-1)
    joint = zoo.bernoulli_mixture.component_log_joint(model, x)[0]
    p = (0.6 * prior + 0.4 * joint).softmax(-1).detach()
    found = drawn.bincount(minlength=3) / 20_000
    assert ((found - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all()


@pytest.mark.parametrize("name", ["gaussian_lvm", "bernoulli_mixture"])
def test_start_at_the_exact_posterior_gives_exact_evidence(name):
    problem = zoo.load(name)
    x = problem.data.test[:30]
    bound = ais(problem, x, oracle(problem), num_chains=3, num_temperatures=4)
    torch.testing.assert_close(bound.value.float(), problem.log_evidence(x), rtol=0, atol=1e-3)
    assert bound.se.max() < 1e-3


def test_one_temperature_is_importance_sampling():
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test[:30]
    for guide in (None, near(problem, x)):
        bound = ais(problem, x, guide, num_chains=800, num_temperatures=1)
        exact = problem.log_evidence(x).double()
        assert abs((bound.value - exact).mean()) < 4 * bound.mean_se


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("name", ["gaussian_lvm", "bernoulli_mixture"])
def test_annealing_agrees_with_exact_evidence(name, start):
    problem = zoo.load(name)
    x = problem.data.test[:40]
    guide = near(problem, x) if start == "guide" else None
    bound = ais(problem, x, guide, num_temperatures=40, num_leapfrog=3)
    difference = bound.value - problem.log_evidence(x).double()
    assert bound.mean_se < 0.05
    assert abs(difference.mean()) < 4 * bound.mean_se


@pytest.mark.slow
def test_annealing_agrees_with_quadrature_of_a_vae(small_vae):  # noqa: F811
    problem, x = small_vae
    bound = ais(problem, x, near(problem, x), num_temperatures=60)
    difference = bound.value - problem.log_evidence(x).double()
    assert bound.mean_se < 0.02
    assert abs(difference.mean()) < 4 * bound.mean_se + problem.evidence_error(x).mean()


def test_blocks_of_rows_and_tables_in_them(monkeypatch):
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test[:30]
    guide = near(problem, x)
    monkeypatch.setattr(annealing, "FLOATS_AT_ONCE", 16 * 64 * 20)
    bound = ais(problem, x, guide, num_temperatures=5, num_leapfrog=2)
    difference = bound.value - problem.log_evidence(x).double()
    assert bound.value.shape == (30,)
    assert abs(difference.mean()) < 4 * bound.mean_se
    assert bound.mean_se < 0.06


def test_shared_latents_are_annealed_as_one_unit(double):
    problem, marginal = one_mean(20)
    x = problem.data.train
    bound = ais(problem, x, num_chains=400, num_temperatures=20, num_leapfrog=3)
    assert bound.value.shape == (1,)
    assert bound.mean_se < 0.1
    assert abs(bound.mean - marginal.log_prob(x[:, 0]).item()) < 4 * bound.mean_se


def hierarchy(num_rows=6):
    """z_n ~ Normal(0, t), x_n ~ Normal(z_n, 1), t ~ Gamma(2, 1): positive and shared t, local z."""

    def model(x=None, index=None):
        t = pyro.sample("t", dist.Gamma(2.0, 1.0))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(0.0, t))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    def exact(x):
        def integrand(t):
            scale = torch.tensor(1 + t * t).sqrt()
            return t * math.exp(-t + dist.Normal(0.0, scale).log_prob(x).sum().item())

        return math.log(integrate.quad(integrand, 0, 60)[0])

    return zoo.Problem(model, zoo.data.as_dataset(1.5 * torch.randn(num_rows, 1))), exact


def test_shared_and_local_latents_together(double):
    problem, exact = hierarchy()
    x = problem.data.train
    bound = ais(problem, x, num_chains=200, num_temperatures=50)
    assert bound.mean_se < 0.1
    assert abs(bound.mean - exact(x)) < 4 * bound.mean_se


@pytest.mark.parametrize("name", ["gaussian_lvm", "bernoulli_mixture", "vae"])
def test_two_sided_bounds_enclose_the_exact_evidence(name, small_vae):  # noqa: F811
    """Short paths keep the bounds apart, long ones close them."""
    problem = small_vae[0] if name == "vae" else zoo.load(name)
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)) if name != "vae" else None
    widths = []
    for number in (2, 20):
        both = bdmc(problem, num_units=60, num_chains=8, num_temperatures=number, num_leapfrog=3)
        exact = problem.log_evidence(both.x).double()
        stated = problem.evidence_error(both.x).double().mean()
        below, above = exact - both.lower.value, both.upper.value - exact
        for distance in (below, above):
            se = distance.std() / math.sqrt(len(distance))
            assert distance.mean() > -4 * se - stated
        widths.append(both.width.mean().item())
    assert widths[0] > 2 * widths[1]


def test_bounds_are_logs_of_unbiased_means(double):
    """Of weights below, of their inverses above."""
    problem, _, _ = linear(8)
    both = bdmc(problem, num_units=1000, num_chains=4, **MIDDLING)
    exact = problem.log_evidence(both.x)
    for ratio in ((both.lower.value - exact).exp(), (exact - both.upper.value).exp()):
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(1000)
    assert both.width.mean() > 0.01


def test_two_sided_bounds_of_shared_latents(double):
    problem, exact = hierarchy(4)
    both = bdmc(problem, num_units=8, num_chains=8, num_temperatures=30, num_leapfrog=3)
    assert both.x.shape == (8, 4, 1)
    assert both.latents["z"].shape == (8, 4)
    assert both.latents["t"].shape == (8, 1)
    truth = torch.tensor([exact(x) for x in both.x])
    for distance in (truth - both.lower.value, both.upper.value - truth):
        assert distance.mean() > -4 * distance.std() / math.sqrt(8)
    assert both.width.mean() < 1


@pytest.mark.slow
def test_interval_of_a_vae_of_ten_latents_is_narrow():
    problem = zoo.load("vae", latent_dim=10)
    fit = experiments.fit(problem, guides.build("amortized", problem))
    short = {"num_temperatures": 40, "num_leapfrog": 3}
    found = evidence_interval(fit.problems[0], fit.guides[0], problem.data.test[:50], **short)
    assert problem.truth.level == "T2"
    assert abs(found.width) + 2 * found.width_se < 0.1
    assert found.upper == found.lower.mean + found.width


@pytest.mark.parametrize("guide_name", ["amortized", "amortized_flow", "laplace"])
def test_annealing_starts_where_densities_are_quick(guide_name, small_vae, monkeypatch):  # noqa: F811
    """A flow's, or a guide's with auxiliary latents, give way to independent normals."""
    problem, x = small_vae
    guide, started = guides.build(guide_name, problem), []
    used = bidirectional.ais

    def noted(problem, x, start, *arguments, **setting):
        started.append(start)
        return used(problem, x, start, *arguments, **setting)

    monkeypatch.setattr(bidirectional, "ais", noted)
    found = evidence_interval(problem, guide, x[:20], 2, num_units=20, num_temperatures=20)
    [start] = started
    assert (start is guide) == (guide_name == "amortized")
    assert start.name == ("amortized" if start is guide else "mean_field")
    exact = problem.log_evidence(x[:20]).mean().item()
    assert found.lower.mean < exact + 0.02
    assert exact - 0.1 < found.upper + 2 * found.width_se


def test_interval_takes_the_higher_bound_and_its_own_width(small_vae):  # noqa: F811
    problem, x = small_vae
    x = x[:20]
    guide = guides.build("amortized", problem)
    steps = {"num_chains": 8, "num_temperatures": 2, "num_units": 20}
    poor = evidence_interval(problem, guide, x, num_draws=1, **steps)
    rich = evidence_interval(problem, guide, x, num_draws=3000, **steps)
    assert (poor.method, rich.method) == ("annealing", "importance")
    assert rich.lower.mean == iwae(problem, guide, x, 3000).mean
    assert rich.width < poor.width


def test_table_guide_is_fitted_to_simulated_rows():
    problem = zoo.load("gaussian_lvm")
    both = bdmc(problem, guides.build("mean_field", problem), 5, num_temperatures=2)
    exact = problem.log_evidence(both.x).double()
    assert ((both.upper.value - exact).abs() < 0.5).all()
    assert ((both.lower.value - exact).abs() < 0.5).all()


def test_simulated_rows_have_the_model_s_moments():
    problem, x, latents = linear(20_000)
    weight, scale = problem.model.weight.detach(), problem.model.scale().detach()
    residual = (x - latents["z"] @ weight.T - problem.model.loc.detach()) / scale
    assert abs(residual.mean()) < 4 / math.sqrt(residual.numel())
    assert abs(residual.square().mean() - 1) < 4 * math.sqrt(2 / residual.numel())
    z = latents["z"]
    assert (z.mean(0).abs() < 4 / math.sqrt(len(z))).all()


def regression(x=None, index=None):
    """Columns: a response, then the covariate, which is not simulated."""
    with zoo.datum(x, index) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        slope = 1.0 if rows is None else rows[:, 1]
        pyro.sample("y", dist.Normal(z * slope, 0.1), obs=None if rows is None else rows[:, 0])


def test_covariates_stay_and_the_response_is_simulated():
    problem = zoo.Problem(regression, zoo.data.as_dataset(torch.randn(5, 2)))
    x, latents = simulated_rows(problem, 12, seed=0)
    train = problem.data.train
    torch.testing.assert_close(x[:, 1], train[torch.arange(12) % len(train), 1])
    assert ((x[:, 0] - latents["z"] * x[:, 1]).abs() < 0.6).all()
    assert not torch.equal(x[:5, 0], train[:5, 0])


def test_likelihood_of_transformed_rows_cannot_be_simulated():
    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0].sin())

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.rand(5, 1)))
    with pytest.raises(zoo.ZooError, match="likelihood must observe entries of the rows"):
        bdmc(problem, num_units=3)


def test_repeatable_and_leaves_the_random_state_alone():
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test[:4]
    before = torch.get_rng_state()
    first, again, other = (ais(problem, x, seed=seed, **SHORT) for seed in (0, 0, 1))
    bdmc(problem, num_units=3, **SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)


def test_model_and_guide_stay_as_they_are():
    problem = zoo.load("vae")
    guide = guides.build("amortized", problem)
    ais(problem, problem.data.test[:3], guide, **SHORT)
    for module in (problem.model, guide):
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_latents_that_cannot_be_annealed_are_refused():
    def counts(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    def beside(x=None, index=None):
        with zoo.datum(x, index) as rows:
            k = pyro.sample("k", dist.Poisson(3.0))
            z = pyro.sample("z", dist.Normal(k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    def shared(x=None, index=None):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    for model, name in ((counts, "z"), (beside, "k"), (shared, "k")):
        problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(6, 1)))
        assert problem.truth.level == "T4"
        for function in (lambda p: ais(p, p.data.train), bdmc):
            with pytest.raises(zoo.ZooError, match=f"cannot anneal over discrete latent '{name}'"):
                function(problem)


def test_finite_latents_beside_continuous_ones_are_summed_out():
    """Two finite latents and a normal: p(x) is a mixture of six normals; bounds from both sides,
    from the prior and from a guide whose q(z) hangs on them."""
    weights, shift = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-4.0, 0.0, 5.0])

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            c = pyro.sample("c", dist.Categorical(weights))
            z = pyro.sample("z", dist.Normal(shift[c], 1.0))
            b = pyro.sample("b", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z + 2 * b, 0.5), obs=None if rows is None else rows[:, 0])

    def guide(x=None, index=None):
        with zoo.datum(x, index) as rows:
            c = pyro.sample("c", dist.Categorical(torch.ones(3)))
            pyro.sample("z", dist.Normal((rows[:, 0] + shift[c]) / 2, 1.0))
            pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))

    x = torch.tensor([[-3.5], [0.3], [2.2], [7.0]])
    problem = zoo.Problem(model, zoo.data.as_dataset(x))
    assert problem.truth.level == "T2"
    means = torch.stack([shift, shift + 2], 1).flatten()
    logits = (weights[:, None] * torch.tensor([0.7, 0.3])).log().flatten()
    exact = (dist.Normal(means, 1.25**0.5).log_prob(x) + logits).logsumexp(-1).double()
    for start in (None, guide):
        found = ais(problem, x, start, num_chains=400, num_temperatures=60)
        assert ((found.value - exact).abs() < 4.4 * found.se + 1e-3).all()
        assert found.se.max() < 0.1
    both = bdmc(problem, guide, num_units=40, num_chains=50, num_temperatures=60)
    logs = (dist.Normal(means, 1.25**0.5).log_prob(both.x) + logits).logsumexp(-1).double()
    for bound, sign in ((both.lower, 1), (both.upper, -1)):
        off = (sign * (bound.value - logs)).mean().item()
        assert off < 3.3 * bound.mean_se
        assert off > -0.1


def test_own_problem_of_continuous_latents_is_bounded():
    problem = of_support(dist.Gamma(2.0, 1.0))
    assert problem.truth.level == "T2"
    with pytest.raises(zoo.TruthUnavailable, match=r"T2: two-sided bounds.*evidence_interval"):
        problem.log_evidence(problem.data.train)


@pytest.mark.parametrize("name", ["num_chains", "num_temperatures", "num_leapfrog"])
def test_settings_are_checked(name):
    problem = zoo.load("gaussian_lvm")
    for value in (0, 1.5, "ten"):
        with pytest.raises(zoo.ZooError, match=f"{name} must be a whole number of at least 1"):
            ais(problem, problem.data.test[:2], **{name: value})


def test_bad_arguments_are_refused():
    problem, _ = one_mean(5)
    x = problem.data.train
    with pytest.raises(zoo.ZooError, match="unknown setting 'chains'; known: num_chains"):
        ais(problem, x, chains=3)
    with pytest.raises(zoo.ZooError, match="num_units must be a whole number of at least 1"):
        bdmc(problem, num_units=0)
    with pytest.raises(zoo.ZooError, match="x has 3 columns, own_problem has 1"):
        ais(problem, torch.zeros(2, 3))
    with pytest.raises(zoo.ZooError, match="cannot start from a guide with auxiliary latents"):
        ais(problem, x, AutoMultivariateNormal(problem.model))

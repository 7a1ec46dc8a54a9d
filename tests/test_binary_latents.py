"""Models of binary latents against brute force, and what is measured of 2^k terms too many."""

import itertools
import math
import typing
from copy import deepcopy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import experiments
import guides
import zoo
from experiments.measure import annealing, coordinates
from experiments.measure.annealing import Setting, ais, anneal, sigmoid, sweep
from experiments.measure.bidirectional import bdmc, evidence_interval, simulated_rows
from experiments.measure.coordinates import Coordinates
from experiments.measure.elbo import log_weights
from experiments.measure.fixed import FixedBound
from experiments.measure.path import Continuous, Densities, Entries, Finite, kind
from experiments.measure.rows import _fit_by_svi, fit_rows
from experiments.measure.streams import stream
from experiments.svi.config import FitConfig
from experiments.svi.discrete import SWITCHES
from experiments.svi.estimators import elbo, resolve
from experiments.svi.loop import isolated
from tests.away import moved_problem
from tests.registered import PAIRS
from zoo import enumeration
from zoo.distributions import BernoulliVector, CategoricalVector, entry_values

QUANTILE = 3.3  # of a normal, exceeded either way once in 1000
ROUNDING = 0.01  # nats of 60 rows together, in float32


def rows_of(num_rows, width):
    return (torch.rand(num_rows, width) < 0.4).to(torch.get_default_dtype())


def lvm(latent_dim, width=6, num_rows=40, by=1.0, **options):
    data = rows_of(num_rows, width)
    return moved_problem("bernoulli_lvm", by, data=data, latent_dim=latent_dim, **options)


def deep(latent_dim, width=6, num_rows=40):
    data = rows_of(num_rows, width)
    return moved_problem("deep_sigmoid_belief_net", 1.0, data=data, latent_dim=latent_dim)


def separate(size, num_rows=50):
    """A model whose every pixel hangs on a switch of its own: log p(x) has a closed form."""
    problem = lvm(size, size, num_rows)
    model = problem.model
    weight, bias = 2 * torch.randn(size), torch.randn(size)
    with torch.no_grad():
        model.decoder[0].weight.copy_(weight.diag())
        model.decoder[0].bias.copy_(bias)
    on = model.prior_logits.detach().sigmoid()
    ones = on * (weight + bias).sigmoid() + (1 - on) * bias.sigmoid()
    return problem, lambda x: (x * ones.log() + (1 - x) * (1 - ones).log()).sum(-1)


def bits(length):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=length))).double()


def by_hand(logits, x):
    """prod_i p_i^x_i (1 - p_i)^(1 - x_i) in NumPy, one vector of logits and one of values."""
    p = 1 / (1 + np.exp(-logits))
    return np.prod(np.where(x > 0, p, 1 - p))


def test_evidence_and_posterior_equal_brute_force(double):
    """Loops in probability space, a state after another."""
    problem = lvm(3, hidden=(4,))
    model, x = problem.model, problem.data.train[:5]
    prior, states = model.prior_logits.detach().numpy(), bits(3)
    means = model.decoder(states).detach().numpy()
    joint = np.array(
        [
            [
                by_hand(prior, z) * by_hand(m, row)
                for z, m in zip(states.numpy(), means, strict=True)
            ]
            for row in x.numpy()
        ]
    )
    np.testing.assert_allclose(problem.log_evidence(x), np.log(joint.sum(1)), rtol=1e-9)
    share = torch.tensor(joint / joint.sum(1, keepdims=True))
    posterior = problem.posterior(x)
    torch.testing.assert_close(posterior.mean, share @ states)
    torch.testing.assert_close(posterior.variance, (share @ states) * (1 - share @ states))
    found = posterior.log_prob(states[:, None].expand(8, 5, 3))
    torch.testing.assert_close(found, share.log().T)
    torch.testing.assert_close(posterior.log_prob(states[2]), share[:, 2].log())
    draws = posterior.sample((2, 10_000))
    assert draws.shape == (2, 10_000, 5, 3)
    counts = (draws @ torch.tensor([4.0, 2.0, 1.0])).long().flatten(0, 1)
    found = torch.stack([column.bincount(minlength=8) for column in counts.T]) / len(counts)
    assert ((found - share).abs() < 4.5 * (share * (1 - share) / len(counts)).sqrt() + 1e-9).all()


def test_evidence_of_two_layers_equals_brute_force(double):
    problem = deep((3, 2))
    model, x = problem.model, problem.data.train[:4]
    expected = []
    for row in x.numpy():
        total = 0.0
        for z2, z1 in itertools.product(bits(2), bits(3)):
            middle, bottom = model.middle(z2).detach().numpy(), model.bottom(z1).detach().numpy()
            top = by_hand(model.top_logits.detach().numpy(), z2.numpy())
            total += top * by_hand(middle, z1.numpy()) * by_hand(bottom, row)
        expected.append(math.log(total))
    np.testing.assert_allclose(problem.log_evidence(x), expected, rtol=1e-9)


@pytest.mark.parametrize("make", [lambda: lvm(4, hidden=(3,)), lambda: deep((3, 2))])
def test_evidence_sums_to_one(make, double):
    assert make().log_evidence(bits(6)).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_blocks_of_rows_and_vectors_change_nothing(monkeypatch, double):
    problem = lvm(5)
    x, z = problem.data.train, rows_of(40, 5)
    posterior = problem.posterior(x)
    whole = problem.log_evidence(x), posterior.mean, posterior.log_prob(z)
    monkeypatch.setattr(enumeration, "VECTORS_AT_ONCE", 8)
    monkeypatch.setattr(enumeration, "CELLS_AT_ONCE", 7 * 32)
    assert max(len(share) for share in posterior._log_shares()) == 7
    parts = problem.log_evidence(x), posterior.mean, posterior.log_prob(z)
    torch.testing.assert_close(parts, whole)
    assert posterior.sample((3,)).shape == (3, 40, 5)


@pytest.mark.parametrize("size", [2, 16])
def test_evidence_of_separate_pixels_is_the_closed_form(size, double):
    problem, exact = separate(size)
    assert problem.truth.level == "T0"
    torch.testing.assert_close(problem.log_evidence(problem.data.train), exact(problem.data.train))


def test_certain_switches_are_stable():
    """Logits of 200: finite, and right in float32."""
    problem = zoo.load("bernoulli_lvm", data=rows_of(9, 2), latent_dim=2)
    with torch.no_grad():
        problem.model.prior_logits.copy_(torch.tensor([200.0, -200.0]))
        problem.model.decoder[0].weight.copy_(torch.tensor([[400.0, 0.0], [0.0, 400.0]]))
        problem.model.decoder[0].bias.fill_(-200.0)
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # The second pixel is a 1 by a switch that is never on, or by one of its own, each exp(-200).
    torch.testing.assert_close(problem.log_evidence(x), torch.tensor([0.0, math.log(2) - 200]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bernoulli_lvm", {"latent_dim": 17}),
        ("bernoulli_lvm", {"latent_dim": 1000}),
        ("deep_sigmoid_belief_net", {"latent_dim": (9, 8)}),
    ],
)
def test_too_many_states_are_bounded_only(name, options):
    problem = zoo.load(name, **options)
    assert problem.truth.level == "T2"
    for question in (problem.log_evidence, problem.posterior):
        with pytest.raises(zoo.TruthUnavailable, match=r"level T2: 2\^\d+ states are too many"):
            question(problem.data.test)


def test_two_layers_have_no_posterior_of_one_latent():
    problem = zoo.load("deep_sigmoid_belief_net")
    with pytest.raises(zoo.TruthUnavailable, match="knows no exact posterior"):
        problem.posterior(problem.data.test)


ONE = "latent_dim must be a whole number from 1 to 10,000, got"
TWO = r"latent_dim must list two whole numbers from 1 to 10,000, .* such as \[6, 4\], got"
NOT_BITS = [[0.0, 2.0], [1.0, 0.0]]
BAD = [
    *(("bernoulli_lvm", {"latent_dim": v}, ONE) for v in (0, True, 1.5, "3", 10_001, None)),
    ("bernoulli_lvm", {"hidden": (0,)}, "hidden must list layer widths"),
    ("bernoulli_lvm", {"data": NOT_BITS}, "observes 2, outside the support"),
    *(
        ("deep_sigmoid_belief_net", {"latent_dim": v}, TWO)
        for v in (0, True, 6, "64", (6,), (6, 0), (6, 1.5), (6, True), (6, 4, 2), None)
    ),
    ("deep_sigmoid_belief_net", {"data": NOT_BITS}, "observes 2, outside the support"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_input(name, options, message):
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.load(name, **options)
    assert "\n" not in str(caught.value)


# Estimators.


def gradient(problem, guide, **settings):
    """The gradient of one step, all parameters in one vector."""
    config = resolve(FitConfig(batch_size=None, **settings), problem)
    modules = torch.nn.ModuleList([problem.model, guide])
    modules.zero_grad()
    with isolated():
        elbo(config, problem).loss_and_grads(problem.model, guide, problem.data.train)
    return torch.cat([p.grad.flatten() for p in modules.parameters()])


@pytest.mark.parametrize("guide_name", ["mean_field", "amortized"])
@pytest.mark.parametrize("make", [lambda: lvm(3, 4, 10), lambda: deep((2, 2), 4, 10)])
def test_score_function_has_the_enumerated_gradient(make, guide_name, double):
    problem = make()
    guide = guides.build(guide_name, problem).double()
    exact = gradient(problem, guide, estimator="enumeration")
    score = {"estimator": "score", "num_particles": 4}
    draws = torch.stack([gradient(problem, guide, **score) for _ in range(300)])
    se = draws.std(0) / math.sqrt(len(draws))
    off = ((draws.mean(0) - exact) / se)[se > 0]
    assert off.abs().max() < 5
    assert off.square().mean().item() == pytest.approx(1, abs=0.5)


ESTIMATORS = set(typing.get_args(FitConfig.model_fields["estimator"].annotation))
DISCRETE = sorted(ESTIMATORS - {"auto", "pathwise", "closed_form"})
SUITED = [guide for name, guide in PAIRS if name == "bernoulli_lvm"]


def reported(problem, guide, count, **settings):
    """Bounds of all data together, as a step of the estimator reports them: (count,)."""
    config = resolve(FitConfig(batch_size=None, **settings), problem)
    objective = elbo(config, problem)
    with torch.no_grad(), isolated():
        losses = [
            objective.terms(problem.model, guide, problem.data.train, None)[0] for _ in range(count)
        ]
    return -torch.stack(losses).double()


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize("guide_name", SUITED)
def test_bound_is_below_the_exact_evidence_of_ten_switches(guide_name, estimator):
    """By draws of the guide, and as the estimator reports it."""
    data = zoo.load("bernoulli_lvm").data
    problem = zoo.load("bernoulli_lvm", data=(data.train[:60], data.test[:9]), latent_dim=10)
    settings = {"batch_size": 20, "estimator": estimator, "steps": 40, "engine": "eager"}
    if estimator in SWITCHES and guide_name == "oracle":  # its switches depend on each other
        with pytest.raises(zoo.ZooError, match="takes independent Bernoulli variables"):
            experiments.fit(problem, guides.build(guide_name, problem), **settings)
        return
    fit = experiments.fit(problem, guides.build(guide_name, problem), **settings)
    problem, x = fit.problems[0], problem.data.train
    below = log_weights(problem, fit.guides[0], x, 300).double().sum(1)
    below = below - problem.log_evidence(x).double().sum()
    assert below.mean() < QUANTILE * below.std() / math.sqrt(300) + ROUNDING
    own = reported(problem, fit.guides[0], 50, estimator=estimator)
    own = own - problem.log_evidence(x).double().sum()
    assert own.mean() < QUANTILE * own.std() / math.sqrt(50) + ROUNDING
    assert fit.history[0, -10:].mean() > fit.history[0, :10].mean()


def test_values_that_are_too_many_together_are_not_enumerated():
    several, one = zoo.load("deep_sigmoid_belief_net", latent_dim=(8, 5)), lvm(32)
    assert [latent.num_values for latent in several.latents] == [2**5, 2**8]
    for problem, words in ((several, "8,192 values together"), (one, "more than 4,096 values")):
        assert resolve(FitConfig(), problem).estimator == "score"
        with pytest.raises(zoo.ZooError, match=f"cannot be enumerated: .*{words}.*; use score"):
            resolve(FitConfig(estimator="enumeration"), problem)


# Annealing, entry by entry.


def by_entries(problem, x, guide=None):
    """The path that is taken where the values are too many, forced on any."""
    return Entries(Densities(problem, x, guide))


def several_values(num_rows=30):
    """A latent of two entries of three values and one of two values, seen through six pixels."""
    loads = [1.5 * torch.randn(3, 6).double() for _ in range(3)]
    logits = torch.randn(2, 3).double()

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", CategoricalVector(logits))
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.7, 0.3]).double()))
            mean = (
                loads[0][z[..., 0].long()] + loads[1][z[..., 1].long()] + y[..., None] * loads[2][0]
            )
            pyro.sample("x", BernoulliVector(mean), obs=rows)

    problem = zoo.Problem(model, zoo.data.as_dataset(rows_of(num_rows, 6)))

    def exact(x):
        total = 0.0
        for i, j, y in itertools.product(range(3), range(3), (0.0, 1.0)):
            mean = (loads[0][i] + loads[1][j] + y * loads[2][0]).sigmoid()
            likelihood = (x * mean + (1 - x) * (1 - mean)).prod(-1)
            prior = logits.softmax(-1)[0, i] * logits.softmax(-1)[1, j] * (0.3 if y else 0.7)
            total = total + prior * likelihood
        return total.log()

    return problem, exact


def shared_switches(num_rows=3):
    """Four switches that all rows share, and one a row: one unit."""
    weight = 2 * torch.randn(4, 5).double()

    def model(x=None, index=None):
        shared = pyro.sample("shared", BernoulliVector(torch.zeros(4).double()))
        with zoo.datum(x, index) as rows:
            own = pyro.sample("own", dist.Bernoulli(torch.tensor(0.5).double()))
            mean = shared @ weight - 1 + own[..., None]
            pyro.sample("x", BernoulliVector(mean), obs=rows)

    problem = zoo.Problem(model, zoo.data.as_dataset(rows_of(num_rows, 5)))

    def exact(x):
        terms = []
        for shared in bits(4):
            rows = 0.0
            for own in (0.0, 1.0):
                mean = (shared @ weight - 1 + own).sigmoid()
                rows = rows + 0.5 * (x * mean + (1 - x) * (1 - mean)).prod(-1)
            terms.append(rows.log().sum() - 4 * math.log(2))
        return torch.stack(terms).logsumexp(0)

    return problem, exact


def unbiased(ratios):
    """Whether (chains, units) ratios of weight to truth have mean 1, units independent."""
    each = ratios.mean(0)
    se = each.std() / math.sqrt(len(each))
    assert 0.001 < se < 0.08
    assert abs(each.mean() - 1) < QUANTILE * se


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("case", ["one latent", "two layers", "several values"])
def test_weights_are_unbiased_up_and_down_the_path(case, start, double):
    """So few steps that the weights spread, and transitions matter."""
    if case == "several values":
        problem, exact = several_values()
    else:
        problem = lvm(5) if case == "one latent" else deep((3, 2))
        exact = problem.log_evidence
    x, latents = simulated_rows(problem, 1500, seed=0)
    guide = guides.build("amortized", problem, hidden=()).double() if start == "guide" else None
    with stream(1, x.device):
        way = by_entries(problem, x, guide)
        truth = {name: value[None] for name, value in latents.items()}
        up, down = anneal(way, Setting(num_chains=8, num_temperatures=4), truth)
    unbiased((up - exact(x)).exp())
    unbiased((exact(x) - down).exp())


def test_weights_of_shared_switches_are_unbiased(double):
    problem, exact = shared_switches()
    x = problem.data.train
    with stream(1, x.device):
        way = by_entries(problem, x)
        assert way.counts == [2] * 7
        up, _ = anneal(way, Setting(num_chains=4000, num_temperatures=4))
    ratios = (up[:, 0] - exact(x)).exp()
    assert abs(ratios.mean() - 1) < QUANTILE * ratios.std() / math.sqrt(len(ratios))
    bound = ais(problem, x, num_chains=200, num_temperatures=20)
    assert abs(bound.mean - exact(x)) < 4 * bound.mean_se < 0.4


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_sweep_leaves_the_tempered_density_invariant(beta, double):
    """Draws of the density at beta are still draws of it: shares of all eight states."""
    problem = lvm(3)
    x = problem.data.train[:1]
    with stream(0, x.device):
        way = by_entries(problem, x)
        states = bits(3)[:, None]
        p = way.evaluate(states).log_density(beta)[:, 0].softmax(0)
        places = p.multinomial(40_000, replacement=True)
        state = sweep(way, way.evaluate(states[places]), beta)
    assert (state.u != states[places]).any(-1).double().mean() > 0.2
    torch.testing.assert_close(state.log_joint, way.evaluate(state.u).log_joint)
    after = (state.u[:, 0] @ torch.tensor([4.0, 2.0, 1.0])).long()
    found = after.bincount(minlength=8) / len(after)
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / len(after)).sqrt()).all()


def test_two_sided_bounds_of_ten_switches_enclose_the_exact_evidence(monkeypatch, double):
    """The path for too many values, forced where the truth is known."""
    monkeypatch.setattr(annealing, "kind", lambda problem: Entries)
    monkeypatch.setattr(annealing, "path", lambda *given: Entries(Densities(*given)))
    problem = lvm(10, 12)
    widths = []
    for number in (2, 12):
        both = bdmc(problem, num_units=60, num_chains=8, num_temperatures=number)
        exact = problem.log_evidence(both.x)
        for distance in (exact - both.lower.value, both.upper.value - exact):
            assert distance.mean() > -QUANTILE * distance.std() / math.sqrt(len(distance))
        widths.append(both.width.mean().item())
    assert widths[0] > 3 * widths[1]
    bound = ais(problem, problem.data.test, num_temperatures=30)
    difference = bound.value - problem.log_evidence(problem.data.test)
    assert abs(difference.mean()) < 4 * bound.mean_se < 0.2


def test_bounds_of_32_switches_enclose_the_closed_form(double):
    """Which the problem itself, at T2, does not know."""
    problem, exact = separate(32)
    assert problem.truth.level == "T2"
    guide = guides.build("amortized", problem, hidden=()).double()
    x = problem.data.test[:12]
    found = evidence_interval(problem, guide, x, 200, num_units=12, num_temperatures=12)
    assert found.method == "annealing"
    assert abs(found.lower.mean - exact(x).mean().item()) < 4 * found.lower.mean_se
    assert -4 * found.width_se < found.width < 1.5
    both = bdmc(problem, num_units=12, num_temperatures=12)
    for distance in (exact(both.x) - both.lower.value, both.upper.value - exact(both.x)):
        assert distance.mean() > -QUANTILE * distance.std() / math.sqrt(len(distance))


def test_the_path_follows_the_latents():
    assert kind(zoo.load("bernoulli_lvm", latent_dim=12)) is Finite
    assert kind(zoo.load("bernoulli_lvm", latent_dim=13)) is Entries
    assert kind(zoo.load("deep_sigmoid_belief_net")) is Entries
    assert kind(zoo.load("vae")) is Continuous
    betas = sigmoid(5)
    assert betas[0] == 0
    assert betas[-1] == 1


def test_a_table_of_many_values_is_built_in_blocks(monkeypatch):
    problem = lvm(7)
    x = problem.data.test[:20]
    whole = ais(problem, x, num_temperatures=3, num_chains=100)
    monkeypatch.setattr(annealing, "TABLE_FLOATS", 3 * 128 * x.shape[1])
    parts = ais(problem, x, num_temperatures=3, num_chains=100)
    for bound in (whole, parts):
        off = (bound.value - problem.log_evidence(x)) / bound.se
        assert off.square().mean() < 2.5


# The best rows.


def exact_bound(problem, rows, x):
    """The bound of every datum under rows of independent switches, by the sum over all states."""
    z = bits(rows.shape[-1]).to(x)
    with torch.no_grad():
        joint = torch.stack(
            [problem.log_joint(problem.model, x, z=own.expand(len(x), -1)) for own in z]
        )
        log_q = z @ rows.T - torch.nn.functional.softplus(rows).sum(-1)
        return (log_q.exp() * (joint - log_q)).sum(0)


def searched(problem, guide, x, start=None, restarts=0):
    """What the search by coordinates finds, also where the values are few: RowFit-like."""
    search = Coordinates(problem, guide)
    first = start or {
        v.name: guide.families[v.name].initial_row(len(x)).to(x) for v in guide.latents
    }
    with stream(0, x.device), torch.no_grad():
        rows, from_restart = search(x, first, restarts, start is not None)
    return rows, from_restart, search


@pytest.mark.parametrize("restarts", [0, 1])
def test_best_rows_by_coordinates_are_those_by_enumeration(restarts, double):
    problem = lvm(6, 8, 30)
    guide, x = guides.build("mean_field", problem).double(), problem.data.test
    best = exact_bound(problem, fit_rows(problem, guide, x, restarts=2).guide.rows(x)["z"], x)
    rows, _, search = searched(problem, guide, x, restarts=restarts)
    assert search.converged
    found = exact_bound(problem, rows["z"], x)
    assert (found <= problem.log_evidence(x) + 1e-9).all()
    excess = best - found
    assert excess.median() < 0.01  # some rows have a second top
    assert excess.median() > -1e-9


def test_best_rows_of_two_layers_by_coordinates(double):
    problem = deep((3, 2), num_rows=20)
    guide, x = guides.build("mean_field", problem).double(), problem.data.test
    best = fit_rows(problem, guide, x, restarts=2).guide.rows(x)
    rows, _, search = searched(problem, guide, x, restarts=1)
    bound = FixedBound(problem, guide)
    with torch.no_grad():
        excess = bound.value(best, x) - bound.value(rows, x)
    assert search.converged
    assert excess.median() < 0.01


def test_best_rows_of_entries_of_several_values(double):
    problem, _ = several_values(12)
    guide, x = guides.build("mean_field", problem).double(), problem.data.test
    best = fit_rows(problem, guide, x, restarts=2).guide.rows(x)
    rows, _, _ = searched(problem, guide, x, restarts=1)
    assert {name: value.shape for name, value in rows.items()} == {"z": (12, 6), "y": (12, 2)}
    bound = FixedBound(problem, guide)
    with torch.no_grad():
        excess = bound.value(best, x) - bound.value(rows, x)
    assert excess.median() < 0.01


def test_rows_of_separate_pixels_have_no_gap(double):
    """The posterior of 20 switches is one of independent switches, and too long to enumerate."""
    problem, exact = separate(20, 10)
    guide, x = guides.build("mean_field", problem).double(), problem.data.test
    found = fit_rows(problem, guide, x)
    assert found.converged
    weights = log_weights(problem, found.guide, x, 2000).double()
    gap = exact(x) - weights.mean(0)
    assert gap.abs().max() < 1e-9  # found by differences that do not depend on the draws


@pytest.mark.parametrize("search", [fit_rows, _fit_by_svi])
def test_best_rows_of_16_switches_are_between_the_encoder_and_the_evidence(search):
    """Every datum keeps the better of its start and what the search found."""
    problem = lvm(16, 16, 24, by=0.7)
    guide, x = guides.build("amortized", problem), problem.data.test
    assert problem.latents[0].num_values is None
    with torch.no_grad():
        start = guide.rows(x)
        tops = searched(problem, guide, x)[0]
    start["z"][:12] = tops["z"][:12]  # half of the data begin at the best there is
    found = search(problem, guide, x, start)
    assert found.converged
    best = guide.with_table(problem, len(x), found.guide.rows(x))
    weights = log_weights(problem, best, x, 2000).double()
    se = weights.std(0) / math.sqrt(2000)
    below = problem.log_evidence(x).double() - weights.mean(0)
    assert (below > -4 * se).all()
    table = guide.with_table(problem, len(x), start)
    gain = (weights - log_weights(problem, table, x, 2000).double()).mean(0)
    assert gain[:12].min() > -0.1
    assert gain[12:].min() > 0.05


def test_a_mixed_model_is_searched_by_svi():
    """Switches, too many to enumerate, and a real number: neither of the other searches suits."""
    weight = torch.randn(13, 5)

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", BernoulliVector(torch.zeros(13)))
            y = pyro.sample("y", dist.Normal(0.0, 1.0))
            pyro.sample("x", BernoulliVector(z @ weight + y[..., None]), obs=rows)

    problem = zoo.Problem(model, zoo.data.as_dataset(rows_of(12, 5)))
    guide = guides.build("mean_field", problem)
    x = problem.data.test
    found = fit_rows(problem, guide, x)
    gain = log_weights(problem, found.guide, x, 500) - log_weights(problem, guide, x, 500)
    assert gain.mean() > 0.1
    with pytest.raises(zoo.ZooError, match="cannot anneal over discrete latent 'z'"):
        ais(problem, x)


# All of it.


def test_a_comparison_of_32_switches_reports_both_bounds(tmp_path):
    data = zoo.load("bernoulli_lvm").data
    problem = zoo.load("bernoulli_lvm", data=(data.train[:300], data.test[:20]), latent_dim=32)
    found = experiments.compare(
        [problem],
        ["amortized"],
        seeds=1,
        out=tmp_path / "out",
        fit={"steps": 150, "batch_size": 64, "engine": "eager"},
        measure={
            "interval_rows": 4,
            "interval_draws": 200,
            "interval_temperatures": 8,
            "restarts": 0,
            "simulations": 20,
            "num_draws": 20,
            "pareto_draws": 100,
        },
        workers=1,
    )
    (record,) = found.records
    gaps = record["measures"]["gaps"]
    assert record["config"]["fit"]["estimator"] == "score"
    lower, upper = (gaps[f"log_evidence_{end}_per_datum"] for end in ("lower", "upper"))
    assert gaps["interval_elbo_per_datum"] < lower < upper
    assert gaps["interval_width"] < 2
    assert gaps["row_converged"]
    assert gaps["amortization_gap_per_datum"] > 0
    assert f"[{lower:.3f}, {upper:.3f}]" in found.table
    history = experiments.saved.saved_fits(tmp_path / "out", {"bernoulli_lvm": problem})
    history = history["bernoulli_lvm-amortized"].history[0]
    assert history[-20:].mean() > history[:20].mean() + 5


def test_the_better_of_candidates_where_one_is_impossible(monkeypatch):
    """A candidate that draws what has no density loses to one that does not, first or not."""
    weights = {
        "impossible": torch.full((4, 1), -math.inf),
        "good": torch.zeros(4, 1),
        "better": torch.ones(4, 1),
    }
    monkeypatch.setattr(coordinates, "log_weights", lambda way, tables: weights[tables])
    found = [
        coordinates.best_of(None, names).item()
        for names in (
            ["impossible", "good"],
            ["good", "impossible"],
            ["good", "better"],
            ["better", "good"],
            ["impossible", "impossible"],
        )
    ]
    assert found == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("name", ["bernoulli_lvm", "hmm", "bernoulli_mixture", "autoencoder"])
def test_copies_of_latents_are_what_the_latents_are(name):
    for latent in zoo.load(name).latents:
        other = deepcopy(latent)
        assert (other.entry_values, other.proper) == (latent.entry_values, latent.proper)


def test_numbers_from_0_to_1_are_not_two_values():
    assert entry_values(constraints.unit_interval) is None
    assert entry_values(constraints.boolean) == 2
    assert entry_values(constraints.independent(constraints.integer_interval(0, 3), 1)) == 4
    assert entry_values(constraints.integer_interval(1, 3)) is None

"""The importance-weighted bound against exact evidence, and what it costs."""

import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal

import experiments
import guides
import zoo
from experiments.measure import evidence
from experiments.measure.elbo import draw
from experiments.measure.evidence import LogMean, iwae, log_mean


def oracle(problem):
    """A guide that is the exact posterior over local latent z."""

    def guide(x=None, index=None):
        with zoo.datum(x, index) as rows:
            pyro.sample("z", problem.truth.posterior(problem.model, rows))

    return guide


def near(problem, x):
    """The posterior's moments with half as much again of its sd, so that weights are bounded."""
    if problem.latents[0].support.is_discrete:
        return guides.build("amortized", problem)  # close to uniform as built
    posterior = problem.posterior(x)
    log_scale = 0.5 * posterior.variance.log() + 0.4
    rows = {"z": torch.cat([posterior.mean, log_scale.expand_as(posterior.mean)], -1)}
    return guides.build("mean_field", problem).with_table(problem, len(x), rows)


def one_mean(num_rows):
    """A joint problem, x_n ~ Normal(m, 1) with m ~ Normal(0, 1), and log p of all rows."""

    def model(x=None, index=None):
        m = pyro.sample("m", dist.Normal(torch.zeros(()), 1.0))
        with zoo.datum(x, index) as rows:
            pyro.sample("x", dist.Normal(m, 1.0), obs=None if rows is None else rows[:, 0])

    x = 1 + torch.randn(num_rows, 1)
    marginal = dist.MultivariateNormal(torch.zeros(num_rows), torch.eye(num_rows) + 1)
    return zoo.Problem(model, zoo.data.as_dataset(x)), marginal


@pytest.fixture(scope="module")
def small_vae():
    """A fitted VAE of two latents, and 60 rows."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        problem = zoo.load("vae")
        fit = experiments.fit(problem, guides.build("amortized", problem), steps=400)
    return fit.problems[0], problem.data.test[:60]


def test_parts_of_a_log_mean_are_the_whole():
    log_weights = 30 * torch.randn(1000, 4, dtype=torch.float64)
    log_weights[:, 1] += 5000
    log_weights[:300, 2] = -math.inf
    log_weights[:, 3] = -math.inf
    parts = LogMean()
    for part in log_weights.split(150):
        parts.add(part)
    value, se = parts.result()
    direct = log_weights.logsumexp(0) - math.log(1000)
    torch.testing.assert_close(value, direct, rtol=1e-12, atol=0)
    ratio = (log_weights - direct).exp()
    by_hand = ratio.std(0) / math.sqrt(1000)
    torch.testing.assert_close(se[:3], by_hand[:3], rtol=1e-9, atol=0)
    assert se[3].isnan()


def test_standard_error_is_the_spread_of_repetitions():
    log_weights = 0.5 * torch.randn(500, 2000, dtype=torch.float64)
    value, se = log_mean(log_weights)
    assert value.std().item() == pytest.approx(se.mean().item(), rel=0.1)
    assert log_mean(log_weights[:1])[1].isnan().all()


@pytest.mark.parametrize("name", ["bernoulli_mixture", "gaussian_lvm"])
def test_bound_agrees_with_exact_evidence(name):
    problem = zoo.load(name)
    x = problem.data.test[:50]
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    agree(problem, x, iwae(problem, near(problem, x), x, 2000))


def test_bound_agrees_with_quadrature_of_a_vae(small_vae):
    problem, x = small_vae
    agree(problem, x, iwae(problem, near(problem, x), x, 4000))


def agree(problem, x, bound):
    assert bound.value.shape == bound.se.shape == (len(x),)
    difference = bound.value - problem.log_evidence(x).double()
    stated = problem.evidence_error(x).double()
    assert bound.mean_se < 0.02
    assert abs(difference.mean()) < 4 * bound.mean_se + stated.mean()
    assert (difference.abs() < 5 * bound.se + stated + 1e-4).all()


def test_exact_posterior_gives_exact_evidence_whatever_the_draws():
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test
    bound = iwae(problem, oracle(problem), x, 3)
    torch.testing.assert_close(bound.value.float(), problem.log_evidence(x), rtol=0, atol=1e-3)
    assert bound.se.max() < 1e-3


def test_bound_rises_from_the_elbo_to_the_evidence(small_vae):
    problem, x = small_vae
    guide = near(problem, x)
    bounds = {k: iwae(problem, guide, x, k) for k in (1, 10, 100, 1000)}
    values = [bound.mean for bound in bounds.values()]
    assert values == sorted(values)
    assert values[1] - values[0] > 0.5
    elbos = draw(problem.model, guide, x, 400).log_weight.double()
    once = torch.stack([iwae(problem, guide, x, 1, seed).value for seed in range(20)])
    se = elbos.std(0).mul(math.sqrt(1 / 400 + 1 / 20)).square().sum().sqrt() / len(x)
    assert abs(once.mean() - elbos.mean()) < 4 * se
    assert bounds[1].se.isnan().all()


def test_minibatches_do_not_scale_the_weights(monkeypatch):
    """Pyro's own bound puts N/B inside the logsumexp (pyro #2220); rows in blocks do not."""
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test[:90]
    exact = problem.log_evidence(x).double()
    guide = guides.build("amortized", problem)
    monkeypatch.setattr(evidence, "CELLS_AT_ONCE", 128 * 20)  # blocks of 20, the last of 10
    bound = iwae(problem, guide, x, 4000)
    assert abs((bound.value - exact).mean()) < 4 * bound.mean_se
    pyros = RenyiELBO(alpha=0, num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    batches = torch.arange(90).split(20)
    theirs = [-pyros.loss(problem.model, guide, x, batch) for batch in batches]
    assert abs(sum(theirs) / len(theirs) - exact.sum()) > 100 * bound.mean_se * len(x)


def test_table_rows_follow_the_blocks(monkeypatch):
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test[:50]
    guide = near(problem, x)
    monkeypatch.setattr(evidence, "CELLS_AT_ONCE", 128 * 7)
    agree(problem, x, iwae(problem, guide, x, 2000))


def test_rows_that_share_a_latent_are_one_unit():
    problem, marginal = one_mean(30)
    x = problem.data.train

    def guide(x=None, index=None):
        pyro.sample("m", dist.Normal(x.mean(), 1.5 / math.sqrt(len(x))))

    bound = iwae(problem, guide, x, 3000)
    assert bound.value.shape == (1,)
    exact = marginal.log_prob(x[:, 0]).item()
    assert abs(bound.mean - exact) < 4 * bound.mean_se
    assert bound.mean_se < 0.03


def test_repeatable_and_leaves_the_random_state_alone():
    problem = zoo.load("gaussian_lvm")
    guide, x = guides.build("amortized", problem), problem.data.test[:10]
    before = torch.get_rng_state()
    first, again, other = (iwae(problem, guide, x, 300, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)


MEMORY = """
import resource, torch, guides, zoo
from experiments.measure.evidence import iwae
torch.set_num_threads(1)
x = (torch.rand(1000, 784) < 0.3).float()
problem = zoo.load("vae", data=x, latent_dim=20, hidden=(50,))
guide = guides.build("amortized", problem, hidden=(50,))
peaks = []
for rows, num_draws in ((50, 128), (50, 4096), (1000, 128)):
    iwae(problem, guide, x[:rows], num_draws)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""


@pytest.mark.slow
def test_memory_grows_neither_with_draws_nor_with_rows():
    """Peak MB of a process; 4096 draws of 50 rows at once would take 640 MB, 1000 rows 400 MB."""
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    first, draws, rows = map(float, ran.stdout.split())
    assert draws - first < 30
    assert rows - first < 60


@pytest.mark.parametrize("num_draws", [0, -1, 2.5, True, "many"])
def test_number_of_draws_is_refused(num_draws):
    problem = zoo.load("gaussian_lvm")
    guide = guides.build("amortized", problem)
    with pytest.raises(zoo.ZooError, match="num_draws must be a whole number of at least 1"):
        iwae(problem, guide, problem.data.test, num_draws)


def test_points_have_no_density_but_densities_carried_over_do():
    problem, marginal = one_mean(20)
    x = problem.data.train
    with pytest.raises(zoo.ZooError, match="has no log q: it is a point estimate of m"):
        iwae(problem, AutoDelta(problem.model), x, 10)
    auto = AutoMultivariateNormal(problem.model, init_scale=0.5)
    bound = iwae(problem, auto, x, 4000)
    assert abs(bound.mean - marginal.log_prob(x[:, 0]).item()) < 4 * bound.mean_se


def test_unfit_rows_and_guides_are_refused():
    problem = zoo.load("gaussian_lvm")
    x = problem.data.test[:9]
    amortized, table = (guides.build(name, problem) for name in ("amortized", "mean_field"))
    with pytest.raises(zoo.ZooError, match="x has 5 columns, gaussian_lvm has 64"):
        iwae(problem, amortized, x[:, :5], 10)
    with pytest.raises(zoo.ZooError, match="this guide's table has 1347 rows, the data 9"):
        iwae(problem, table, x, 10)
    with torch.no_grad():
        next(amortized.parameters()).fill_(math.nan)
    with pytest.raises(zoo.ZooError, match="log p or log q is NaN"):
        iwae(problem, amortized, x, 10)

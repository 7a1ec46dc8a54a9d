"""Models without latents, their closed forms, and latents that are vectors of whole numbers."""

import csv
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2

import experiments
import guides
import zoo
from experiments import records
from experiments.compare import _changed as changed
from experiments.measure.density import density
from experiments.measure.fixed import FixedBound
from experiments.settings import load_suite
from tests.registered import few_rows
from zoo.autoregressive import Autoregressive
from zoo.distributions import BernoulliVector, CategoricalVector, all_vectors
from zoo.problem import Latent

QUICK = {"num_draws": 4, "simulations": 0, "interval_rows": 0, "densities": True, "nll_draws": 10}


@pytest.fixture
def coins():
    return zoo.load("independent_bernoulli")


def test_closed_form_is_the_default_and_beats_gradients(coins):
    guide = guides.build("empty", coins)
    fit = experiments.fit(coins, guide, seeds=2)
    assert fit.config.estimator == "closed_form"
    assert fit.history.shape == (2, 1)
    ones = coins.data.train.sum(0) + 1
    share = ones / (len(coins.data.train) + 2)
    expected = dist.Bernoulli(share).to_event(1).log_prob(coins.data.train).mean()
    torch.testing.assert_close(fit.elbo_per_datum, expected.expand(2))
    settings = {"steps": 1500, "learning_rate": 0.1, "estimator": "pathwise"}
    by_steps = experiments.fit(coins, guide, **settings)
    assert -0.05 < by_steps.elbo_per_datum - expected < 0.01  # smoothing is not the likeliest


def test_bound_of_a_model_without_latents_is_its_evidence(coins, tmp_path):
    found = experiments.compare(
        ["independent_bernoulli", "bernoulli_mixture"],
        ["amortized"],
        seeds=1,
        out=tmp_path,
        fit={"steps": 3},
        measure=QUICK,
    )
    record, other = found.records
    assert record["config"]["guide"] == "empty"
    gaps = record["measures"]["gaps"]
    assert gaps["elbo_per_datum"] == pytest.approx(gaps["log_evidence_per_datum"], abs=1e-4)
    assert gaps["amortization_gap_per_datum"] == 0
    assert gaps["total_gap_per_datum"] == pytest.approx(0, abs=1e-5)
    assert "pareto" not in record["measures"]
    nll = record["measures"]["density"]
    assert nll["nll_per_datum"] == pytest.approx(-gaps["log_evidence_per_datum"], abs=1e-4)
    assert nll["nll_by"] == "exact"
    assert nll["parameters"] == 64
    assert other["measures"]["density"]["nll_by"] == "exact"
    assert "| independent_bernoulli | empty | 64 |" in found.table
    assert (tmp_path / "independent_bernoulli-empty" / "posterior.nc").exists()
    again = experiments.compare(
        ["independent_bernoulli", "bernoulli_mixture"],
        ["amortized"],
        seeds=1,
        out=tmp_path,
        fit={"steps": 3},
        measure=QUICK,
        resume=True,
    )
    assert again.records == records.read(tmp_path / "records.jsonl")


def test_bounded_nll_is_above_the_exact_one_and_says_so(monkeypatch):
    problem = zoo.load("gaussian_lvm")
    guide, x = guides.build("amortized", problem), problem.data.test
    exact = density(problem, guide, x, 10)
    unknown = problem.having(truth=zoo.Truth("T2", "for this test"))
    few, many = (density(unknown, guide, x, count) for count in (2, 200))
    assert few["nll_by"] == "importance"
    assert few["nll_per_datum"] > many["nll_per_datum"] > exact["nll_per_datum"] - 0.01


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: guides.build("mean_field", p), "has no latents: take guide 'empty'"),
        (lambda p: guides.build("empty", zoo.load("vae")), "'empty' has no q for the latents z"),
        (
            lambda p: experiments.fit(
                zoo.load("vae"), guides.build("amortized", zoo.load("vae")), estimator="closed_form"
            ),
            "vae has no closed form of maximum likelihood",
        ),
        (lambda p: zoo.load("independent_bernoulli", smoothing=-1), "at least 0, got -1"),
        (lambda p: zoo.load("independent_bernoulli", smoothing=True), "at least 0, got True"),
        (lambda p: p.posterior(p.data.test), "knows no exact posterior"),
    ],
)
def test_bad_input(coins, make, sentence):
    with pytest.raises(zoo.ZooError, match=sentence):
        make(coins)


def test_a_comparison_says_which_model_its_guides_for_does_not_know(tmp_path):
    with pytest.raises(zoo.ZooError, match="unknown model 'vea'"):
        experiments.compare(["vae"], guides_for={"vea": ["amortized"]}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("guides_for", [{}, {"vae": ["mean_feild"]}])
def test_a_comparison_refuses_a_guide_that_nobody_knows(tmp_path, guides_for):
    """Also where the model, without latents, would take another."""
    given = ["mean_field"] if guides_for else ["mean_feild"]
    with pytest.raises(zoo.ZooError, match="unknown guide 'mean_feild'; known: mean_field"):
        experiments.compare(["chow_liu"], given, out=tmp_path / "out", guides_for=guides_for)
    assert not (tmp_path / "out").exists()


def test_guides_that_are_chosen_outweigh_the_suites():
    suite = load_suite("densities")
    assert suite.guides_for["hierarchical_vae"] == ["top_down"]
    chosen = changed(suite, {"models": None, "guides": ["mean_field"], "seeds": None}, {})
    assert (chosen.guides, chosen.guides_for) == (["mean_field"], {})


def test_table_of_densities_alone(tmp_path):
    """It says which numbers are bounds; tables of what was not measured are left out."""
    data = few_rows("hierarchical_vae").data
    settings = {"measure": QUICK | {"search": False}, "fit": {"steps": 3}, "seeds": 2}
    options = {"hierarchical_vae": {"data": data}, "chow_liu": {"data": data}}
    problems = [zoo.load(name, **given) for name, given in options.items()]
    found = experiments.compare(problems, ["top_down"], out=tmp_path, **settings)
    assert not found.failed
    assert "| hierarchical_vae | top_down | 27,668 |" in found.table
    assert "| ≤ " in found.table
    assert "but for ≤: there by importance weighting with 10 draws" in found.table
    assert "Steps of SVI a run: 3;" in found.table
    assert "k > 0.7" not in found.table
    assert "nan" not in found.table
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [line["test_NLL_by"] for line in lines] == ["importance", "exact"]
    assert float(lines[0]["test_NLL_se_over_data"]) > 0


def test_guides_for_a_model_replace_the_others(tmp_path):
    found = experiments.compare(
        ["bernoulli_mixture", "gaussian_lvm"],
        ["mean_field"],
        seeds=1,
        out=tmp_path,
        fit={"steps": 2},
        guides_for={"gaussian_lvm": ["constant"]},
        measure=QUICK,
    )
    assert [r["config"]["guide"] for r in found.records] == ["mean_field", "constant"]


def vectors():
    logits = torch.randn(5, 3)
    yield BernoulliVector(logits), dist.Bernoulli(logits=logits).to_event(1), 2**3
    logits = torch.randn(5, 3, 4)
    yield CategoricalVector(logits), dist.Categorical(logits=logits).to_event(1), 4**3


@pytest.mark.parametrize("which", [0, 1])
def test_vectors_of_whole_numbers(which):
    """Log densities are Pyro's own; the enumerated values are all there are, in order."""
    ours, theirs, count = list(vectors())[which]
    x = theirs.sample((7,))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    values = ours.enumerate_support(expand=False)
    assert values.shape == (count, 1, 3)
    torch.testing.assert_close(ours.log_prob(values).logsumexp(0), torch.zeros(5))
    torch.testing.assert_close(ours.log_prob(values), theirs.log_prob(values.expand(-1, 5, -1)))
    latent = Latent("z", ours.support, (3,), ("datum",), values[:, 0])
    assert latent.places(values[:, 0]).tolist() == list(range(count))
    assert latent.places(x).shape == (7, 5)
    torch.testing.assert_close(values[latent.places(x), 0].to(x), x)
    drawn = ours.expand((2, 5)).sample((4000,))
    assert drawn.shape == (4000, 2, 5, 3)
    share = (drawn == 1).float().mean((0, 1))
    expected = ours.logits.sigmoid() if which == 0 else ours.logits.exp()[..., 1]
    assert ((share - expected).abs() < 4 * (0.25 / 8000) ** 0.5).all()


def test_all_vectors_are_in_order():
    assert all_vectors(3, 3).tolist() == [list(v) for v in itertools.product(range(3), repeat=3)]


def test_vectors_too_many_to_enumerate():
    assert BernoulliVector(torch.zeros(12)).has_enumerate_support
    many = BernoulliVector(torch.zeros(13))
    assert not many.has_enumerate_support
    with pytest.raises(NotImplementedError, match=r"2\^13 values are too many"):
        many.enumerate_support()


def three_bits():
    """Three bits, dependent given x: the factorized family has a gap."""
    weight = torch.tensor([2.0, -1.0, 1.5])

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", BernoulliVector(torch.zeros(3)))
            mean = (z * weight).sum(-1)
            pyro.sample("x", dist.Normal(mean, 0.5), obs=None if rows is None else rows[:, 0])

    def log_joint(model, x, z):
        mean = (z * weight).sum(-1)
        return 3 * math.log(0.5) + dist.Normal(mean, 0.5).log_prob(x[:, 0])

    rows = torch.linspace(-1, 3, 9)[:, None]
    return zoo.Problem(model, zoo.data.as_dataset(rows), log_joint), log_joint


def test_best_of_a_factorized_family_by_brute_force():
    """The bound of given rows, and its maximum against a fine grid over two of three logits."""
    problem, log_joint = three_bits()
    guide, x = guides.build("mean_field", problem), problem.data.train
    bound, logits = FixedBound(problem, guide), torch.randn(len(x), 3)
    values = all_vectors(3, 2, x)
    q = dist.Bernoulli(logits=logits).to_event(1)
    log_q = torch.stack([q.log_prob(v.expand(len(x), -1)) for v in values])
    log_p = torch.stack([log_joint(None, x, v.expand(len(x), -1)) for v in values])
    expected = (log_q.exp() * (log_p - log_q)).sum(0)
    torch.testing.assert_close(bound.value({"z": logits}, x), expected)
    evidence = log_p.logsumexp(0)
    best = experiments.fit_rows(problem, guide, x, restarts=3)
    found = bound.value(best.guide.rows(x), x)
    assert best.converged
    assert (found <= evidence + 1e-5).all()
    assert (evidence - found > 0.05).any()  # what the family cannot represent
    axis = torch.linspace(-8, 8, 9)
    grid = torch.cartesian_prod(axis, axis, axis)
    on_grid = torch.stack([bound.value({"z": p.expand(len(x), -1)}, x) for p in grid]).amax(0)
    assert (found > on_grid - 2e-3).all()  # a search ends where a step foretells 1e-4


def test_autoregressive_density_sums_to_one_and_is_what_it_draws():
    weight = torch.randn(4, 4, 3)
    below = torch.ones(4, 4).tril(-1)[..., None]

    def conditionals(x):
        return torch.einsum("ni,jik->njk", x, weight * below)

    q = Autoregressive(conditionals, 4, weight, num_values=3)
    values = all_vectors(4, 3, weight)
    log_p = q.log_prob(values)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(()))
    assert q.expand((2, 81)).log_prob(values).shape == (2, 81)
    drawn = q.sample((20_000,))
    place = (drawn * torch.tensor([27.0, 9.0, 3.0, 1.0])).sum(-1).long()
    share = torch.bincount(place, minlength=81) / len(drawn)
    p = log_p.exp()
    statistic = (len(drawn) * (share - p).square() / p).sum().item()
    assert chi2.sf(statistic, 80) > 0.001

"""Every registered model and guide passes every check; every check refuses its broken entries."""

import inspect
import math
import re

import broken
import legit
import pyro
import pyro.distributions as dist
import pytest
import torch
from registered import DENSITIES, JOINT, PAIRS, SMALL, few_rows
from scipy.stats import binom

import experiments
import guides
import zoo
import zoo.checks
from experiments.check import table
from experiments.svi.run import as_module
from guides import checks as pair_checks
from zoo import testing

MODEL_CHECKS = zoo.checks.CHECKS + zoo.checks.RANDOM
PAIR_CHECKS = pair_checks.CHECKS + pair_checks.RANDOM


def ids(check):
    return check.__name__.removeprefix("check_")


def holds(subject, check, *arguments):
    """A check by luck, which refuses one right entry in a hundred, is given a second draw."""
    by_luck = check in zoo.checks.RANDOM + pair_checks.RANDOM
    for seed in range(2 if by_luck else 1):
        found = testing.outcome(subject, check, *arguments, seed=seed)
        if found.ok:
            return
    raise AssertionError(found.sentence)


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=ids)
def test_registered_model(problem, check):
    holds("model", check, problem)


@pytest.mark.parametrize("check", PAIR_CHECKS, ids=ids)
@pytest.mark.parametrize(("name", "guide_name"), PAIRS)
def test_registered_pair(name, guide_name, check):
    # One distribution over the latents of all data takes few of them.
    one_for_all = name in JOINT and guide_name in DENSITIES
    problem = few_rows(name, 20) if one_for_all else zoo.load(name)
    holds(
        guide_name, check, problem, guides.build(guide_name, problem, **SMALL.get(guide_name, {}))
    )


@pytest.mark.parametrize("name", broken.MODELS)
def test_broken_model_is_refused_by_its_check(name):
    fault = broken.MODELS[name]
    problem = fault.build()
    (check,) = (c for c in MODEL_CHECKS if ids(c).replace("_", " ") == fault.check)
    found = testing.outcome("model", check, problem)
    assert not found.ok
    assert re.search(fault.words, found.sentence), found.sentence
    assert "\n" not in found.sentence


@pytest.mark.parametrize("name", broken.PAIRS)
def test_broken_pair_is_refused_by_its_check(name):
    fault = broken.PAIRS[name]
    problem, guide = fault.build()
    (check,) = (c for c in PAIR_CHECKS if ids(c).replace("_", " ") == fault.check)
    found = testing.outcome("guide", check, problem, as_module(guide, problem))
    broken.drop_broken_guide()
    assert not found.ok
    assert re.search(fault.words, found.sentence), found.sentence
    assert "\n" not in found.sentence


@pytest.mark.parametrize("name", legit.ENTRIES)
def test_legit_entry_is_refused_by_no_check(name):
    problem, guide = legit.ENTRIES[name]()
    assert [r for r in experiments.check(problem, guide) if not r.ok] == []


@pytest.mark.parametrize("name", legit.ENTRIES)
def test_legit_entry_is_fitted(name):
    problem, guide = legit.ENTRIES[name]()
    fit = experiments.fit(problem, guide, steps=2, batch_size=1)
    assert torch.isfinite(fit.history).all()


def test_what_a_legit_entry_is_there_for_is_checked():
    """It is not by leaving the check out that these pass."""
    for name, checks in {
        "deterministic_sites": ("minibatch", "rows", "score identity"),
        "own_encoder": ("uses its input",),
        "two_rows": ("minibatch", "bound"),
        "sorted_rows": ("parameters",),
    }.items():
        found = {
            (r.subject == "model", r.check): r for r in experiments.check(*legit.ENTRIES[name]())
        }
        assert all(found[False, check].sentence == "" for check in checks)


@pytest.mark.parametrize("name", ["misspelt_site", "missing_latent", "latent_too_many"])
def test_only_the_sites_check_speaks_of_other_sites(name):
    found = experiments.check(*broken.PAIRS[name].build())
    assert [r.check for r in found if not r.ok] == ["sites"]


def test_guides_of_one_name_have_a_column_each():
    problem = broken.right_problem()

    def made(name):
        def guide(x=None, index=None):
            with zoo.datum(x, index):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        guide.__name__ = name
        return guide

    found = experiments.check(problem, [made("guide"), made("guide"), made("model")])
    subjects = ["model", "guide", "guide 2", "model 2"]
    assert list(dict.fromkeys(r.subject for r in found)) == subjects
    assert len({(r.subject, r.check) for r in found}) == len(found)


def test_every_check_has_a_broken_entry():
    for checks, faults in ((MODEL_CHECKS, broken.MODELS), (PAIR_CHECKS, broken.PAIRS)):
        assert {ids(c).replace("_", " ") for c in checks} == {f.check for f in faults.values()}


def test_every_check_is_in_a_list():
    """A check that is written and not listed would never run."""
    for module, listed in ((zoo.checks, MODEL_CHECKS), (pair_checks, PAIR_CHECKS)):
        found = {n for n, f in inspect.getmembers(module, inspect.isfunction) if "check_" in n[:6]}
        found = {n for n in found if getattr(module, n).__module__ == module.__name__}
        assert found == {check.__name__ for check in listed}


def test_broken_entries_are_right_but_for_their_fault():
    """What the faults are put into passes, so that it is the fault that is refused."""
    problem = broken.right_problem()
    assert [r for r in experiments.check(problem) if not r.ok] == []
    for built in (broken.amortized(), broken.normal_guide()):
        assert [r for r in experiments.check(*built) if not r.ok] == []


LATENTS = {
    "real": dist.Normal(0.0, 1.0),
    "vector": dist.Normal(torch.zeros(3), 1.0).to_event(1),
    "positive": dist.Gamma(3.0, 2.0),
    "interval": dist.Beta(2.0, 3.0),
    "simplex": dist.Dirichlet(2 * torch.ones(4)),
    "matrix": dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
    "categorical": dist.Categorical(torch.tensor([0.2, 0.3, 0.5])),
    "bernoulli": dist.Bernoulli(0.3),
}


def problem_of_latent(prior, where, num_data=9):
    """A model of one latent in the plate, outside it, or both; its truth is not known."""
    dims = len(prior.event_shape)
    powers = torch.arange(1.0, 1 + prior.event_shape.numel())

    def location(z, scale):
        flat = z.reshape(*z.shape[: z.dim() - dims], -1) if dims else z[..., None]
        return scale * (flat * powers).sum(-1)

    def model(x=None, index=None):
        scale = pyro.param("scale", lambda: torch.tensor(0.7))
        shared = pyro.sample("shared", prior) if where != "local" else None
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior) if where != "global" else shared
            loc = location(z, scale)
            if where == "both":
                loc = loc + location(shared, scale)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=None if rows is None else rows[:, 0])

    def log_joint(model, x, z=None, shared=None):
        scale = model.constrained("scale")
        known = [value for value in (z, shared) if value is not None]
        loc = sum(location(value, scale) for value in known)
        rows = dist.Normal(loc, 1.0).log_prob(x[:, 0])
        rows = rows if z is None else rows + prior.log_prob(z)
        return rows if shared is None else rows.sum(-1) + prior.log_prob(shared)

    rows = torch.linspace(-1, 2, num_data)[:, None]
    return zoo.Problem(model, zoo.data.as_dataset(rows), log_joint)


@pytest.mark.parametrize("where", ["local", "global", "both"])
@pytest.mark.parametrize("latent", LATENTS)
def test_latents_of_every_support(latent, where):
    results = experiments.check(problem_of_latent(LATENTS[latent], where))
    assert [r for r in results if not r.ok] == []
    assert ("amortized", "sites", "") in [(r.subject, r.check, r.sentence) for r in results]


def normal_means(rows):
    """x_n ~ Normal(mu, 1), mu ~ Normal(0, 1): all rows are one unit, whose evidence is known."""

    def model(x=None, index=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with zoo.datum(x, index) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=None if rows is None else rows[:, 0])

    def log_joint(model, x, mu):
        normal = dist.Normal(0.0, 1.0)
        return normal.log_prob(mu) + normal.log_prob(x[:, 0] - mu[..., None]).sum(-1)

    def log_evidence(model, x):
        rows = dist.Normal(0.0, 1.0).log_prob(x[:, 0]).sum()  # covariance I + 11'
        return rows - 0.5 * math.log(1 + len(x)) + 0.5 * x.sum() ** 2 / (1 + len(x))

    def posterior(model, x):
        variance = 1 / (1 + len(x))
        return dist.Normal(x[:, 0].sum() * variance, variance**0.5)

    truth = zoo.Truth("T0", "conjugate", log_evidence, posterior)
    return zoo.Problem(model, zoo.data.as_dataset(rows), log_joint, truth)


def test_joint_evidence_is_checked_as_one_unit():
    problem = normal_means(torch.randn(8, 1))
    found = {(r.subject, r.check): r for r in experiments.check(problem)}
    assert all(result.ok for result in found.values())
    assert found["model", "truth"].sentence == ""
    assert found["mean_field", "bound"].sentence == ""
    low = zoo.Truth("T0", "", lambda model, x: problem.truth.log_evidence(model, x) - 20)
    (bound,) = (
        r for r in experiments.check(problem.having(truth=low), "mean_field") if r.check == "bound"
    )
    assert "nats above the exact evidence of 8 rows" in bound.sentence


def test_many_rows_of_a_joint_problem():
    found = experiments.check(normal_means(torch.randn(10_000, 1)), "mean_field")
    assert [r for r in found if not r.ok] == []


def test_a_point_and_a_function_of_noise_are_left_out_with_a_sentence():
    """A delta guide has no log q; draws that are functions of parameters have no score."""

    def point(x=None, index=None):
        pyro.sample("mu", dist.Delta(pyro.param("loc", lambda: torch.zeros(()))))

    def carried(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(()))
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Delta(loc + noise))

    problem = normal_means(torch.randn(8, 1))
    for guide, words, bound in ((point, "is a point", "is a point"), (carried, "noise", "")):
        found = {r.check: r for r in experiments.check(problem, guide) if r.subject != "model"}
        assert all(result.ok for result in found.values())
        assert words in found["score identity"].sentence
        assert bound in found["bound"].sentence


@pytest.mark.slow
def test_rate_of_false_alarms_is_the_declared_one():
    """Suites of random checks on right entries, each with a seed of its own.

    The number of suites that refuse has a binomial distribution whose rate is at most the
    declared one; the bound is passed with probability 1e-4.
    """
    entries = [
        (broken.right_problem(), ["mean_field", "amortized"]),
        (normal_means(torch.randn(8, 1)), ["mean_field"]),
        (problem_of_latent(LATENTS["categorical"], "local"), ["mean_field", "amortized"]),
        (problem_of_latent(LATENTS["simplex"], "both"), ["mean_field"]),
    ]
    for rate, num_suites in ((testing.FALSE_ALARMS, 600), (0.5, 120)):
        refused = sum(
            suite_refuses(*entries[seed % len(entries)], seed, rate) for seed in range(num_suites)
        )
        assert refused <= binom.ppf(1 - 1e-4, num_suites, rate), refused
        print(rate, num_suites, refused)
    assert refused > 0  # at a rate that large the checks do refuse


def suite_refuses(problem, names, seed, rate):
    level = rate / (1 + 2 * len(names))
    torch.manual_seed(seed)
    pairs = [(problem, guides.build(name, problem)) for name in names]
    calls = [(check, problem) for check in zoo.checks.RANDOM]
    calls += [(check, *pair) for check in pair_checks.RANDOM for pair in pairs]
    found = [testing.outcome("entry", *call, level, seed=seed) for call in calls]
    return not all(result.ok for result in found)


def test_table_has_a_row_a_check_and_a_sentence_a_failure():
    problem = broken.MODELS["detached_mean"].build()
    text = table(experiments.check(problem, "mean_field")).splitlines()
    assert text[0].split() == ["check", "model", "mean_field"]
    rows = {line[:18].strip(): line[18:].split() for line in text[1:] if line[:6] != "FAILED"}
    assert rows["parameters"] == ["FAILED", "ok"]
    assert rows["truth"] == ["-"]
    assert rows["sites"] == ["ok", "ok"]
    (failure,) = (line for line in text if line.startswith("FAILED"))
    assert failure.startswith("FAILED model, parameters: parameter 'loc' of the model gets no")
    assert re.fullmatch(
        r"\d+ of \d+ checks failed, \d+ checks hold, \d+ do not apply \(-\)", text[-1]
    )


def test_table_says_why_a_check_of_the_model_does_not_apply():
    results = experiments.check(broken.problem_of(log_joint=None), "mean_field")
    text = table(results).splitlines()
    reasons = [line for line in text if line.startswith("not applied: ")]
    assert reasons[0].startswith("not applied: density: no log_joint is given")
    assert reasons[1].startswith("not applied: truth: no exact evidence")
    assert len(reasons) == 2
    left_out = sum(r.sentence != "" for r in results)
    assert text[-1] == f"{len(results) - left_out} checks hold, {left_out} do not apply (-)"
    two = [testing.Result("model", name, True, "not applicable: no y") for name in ("a", "b")]
    assert "not applied: a, b: no y" in table(two).splitlines()


def test_a_model_that_does_not_run_is_one_result():
    def model(x):  # takes no index
        with zoo.datum(x) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=rows)

    (result,) = experiments.check(broken.program(model))
    assert (result.subject, result.check, result.ok) == ("model", "runs", False)
    assert (
        "does not run as model(x, index), with x=None and index=None: TypeError" in result.sentence
    )
    assert table([result]).endswith("1 of 1 checks failed")


def test_check_of_a_guide_that_does_not_suit_says_so():
    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = broken.program(model)
    unsuited = [r for r in experiments.check(problem) if r.check == "suits"]
    assert {r.subject for r in unsuited} >= {"mean_field", "amortized"}
    assert all(re.search("does not suit|has no q for", r.sentence) for r in unsuited)
    assert all(r.ok for r in unsuited)
    assert "mean_field does not suit: not applicable" in table(experiments.check(problem))
    with pytest.raises(zoo.ZooError, match="does not suit"):
        experiments.check(problem, "mean_field")


def test_check_leaves_no_trace():
    """torch's stream, the parameter store and the model are as they were."""
    problem = broken.right_problem()
    before = torch.get_rng_state(), [p.clone() for p in problem.model.parameters()]
    experiments.check(problem, "mean_field")
    assert not list(pyro.get_param_store().keys())
    assert torch.get_default_dtype() == torch.float32
    assert all(map(torch.equal, before[1], problem.model.parameters()))
    torch.set_rng_state(before[0])
    guides.build("mean_field", problem)
    mean = torch.get_rng_state()
    torch.set_rng_state(before[0])
    experiments.check(problem, "mean_field")
    assert torch.equal(mean, torch.get_rng_state())

"""Reference draws: their criteria recomputed, their moments against a quadrature, and refusals."""

import json
import math

import numpy as np
import pyro
import pytest
import torch
from arviz import ess, rhat

import zoo
from experiments.measure import reference
from experiments.measure.nuts import Chains, sample

NAMES = sorted(reference.RECIPES)


def independent(shape=(), **changes):
    """Chains of independent draws, which meet every criterion, or with some fields changed."""
    torch.manual_seed(0)
    fields = {"draws": {"z": torch.randn(4, 2500, *shape)}, "energy": torch.randn(4, 2500)}
    return Chains(**(fields | {"divergences": torch.zeros(4, dtype=torch.long)} | changes))


@pytest.mark.parametrize("name", NAMES)
def test_stored_reference_meets_every_criterion(name):
    chains, facts = reference.load(name)
    met = reference.criteria(chains)
    assert all(met.values()), met
    assert facts["criteria"] == met
    assert chains.num_draws == 10_000
    assert facts["arguments"] == reference.RECIPES[name].arguments
    assert chains.energy.shape[1] == facts["arguments"]["thin"] * 2500
    for quantity, found in reference.diagnostics(chains).items():
        assert found == pytest.approx(facts["diagnostics"][quantity], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_stored_reference_is_of_the_problem_as_it_is(name):
    _, facts = reference.load(name)
    problem = zoo.load(name, **reference.RECIPES[name].options)
    assert facts["problem"] == problem.identity
    assert problem.truth.level == "T3"
    assert facts["environment"]["command"].endswith(f"experiments.measure.reference {name}")
    assert len(list(reference.FOLDER.iterdir())) == 2 * len(NAMES)


def schools_by_quadrature(num_nodes=4000):
    """Posterior mean and sd of mu, tau and every theta: a sum over tau, the rest in closed form."""
    x = zoo.load("eight_schools").data.train.double().numpy()
    y, variance = x[:, 0], x[:, 1] ** 2
    u = (np.arange(num_nodes) + 0.5) / num_nodes
    tau = 5 * np.tan(np.pi / 2 * u)[:, None]
    precision = 1 / (tau**2 + variance)
    total = 1 / 25 + precision.sum(1)  # of mu given tau
    center = (precision * y).sum(1) / total
    log_weight = 0.5 * np.log(precision).sum(1) - 0.5 * np.log(25 * total)
    log_weight = log_weight - 0.5 * ((precision * y**2).sum(1) - center**2 * total)
    weight = np.exp(log_weight - log_weight.max())
    weight = weight / weight.sum()
    shrink = tau**2 * precision  # theta = mu + shrink (y - mu) + noise
    theta = center[:, None] + shrink * (y - center[:, None])
    theta_variance = shrink * variance + (1 - shrink) ** 2 / total[:, None]
    square = (tau[:, 0] ** 2 * weight).sum()
    first = {"mu": weight @ center, "tau": weight @ tau[:, 0]}
    second = {"mu": weight @ (center**2 + 1 / total), "tau": square}
    for n in range(8):
        first[f"theta[{n}]"] = weight @ theta[:, n]
        second[f"theta[{n}]"] = weight @ (theta[:, n] ** 2 + theta_variance[:, n])
    return {name: (first[name], math.sqrt(second[name] - first[name] ** 2)) for name in first}


def test_schools_have_the_moments_of_the_quadrature():
    """Within 4 standard errors; that of an sd from the fourth moment and the ESS of squares."""
    chains, _ = reference.load("eight_schools")
    exact = schools_by_quadrature()
    found = reference.scalars(chains.draws)
    assert set(found) == set(exact)
    for name, values in found.items():
        mean, sd = exact[name]
        se = sd / math.sqrt(ess(values.numpy()))
        assert abs(values.mean().item() - mean) < 4 * se, name
        squares = (values - mean).square()
        se = squares.std().item() / math.sqrt(ess(squares.numpy()))
        assert abs(squares.mean().item() - sd**2) < 4 * se, name


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5])
def test_rhat_and_ess_agree_with_arviz(shift):
    """On heavy-tailed, autocorrelated chains, alike or shifted against each other."""
    torch.manual_seed(1)
    noise = torch.randn(4, 500)
    values = noise.clone()
    for step in range(1, 500):
        values[:, step] = 0.6 * values[:, step - 1] + noise[:, step]
    values = values.sinh() + shift * torch.arange(4.0)[:, None]
    assert reference.rank_rhat(values) == pytest.approx(rhat(values.numpy()), rel=1e-3)
    (found,) = reference.diagnostics(independent(draws={"z": values})).values()
    if shift < 0.1:  # chains that do not mix have no common definition of it
        assert found["ess"] == pytest.approx(ess(values.numpy(), method="mean"), rel=0.05)


def test_folded_ranks_see_a_chain_of_another_scale():
    torch.manual_seed(0)
    values = torch.randn(4, 1000) * torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None]
    assert reference.rank_rhat(values) == pytest.approx(rhat(values.numpy()), rel=1e-3)
    assert reference.rank_rhat(values) > 1.05


def smoothed(draws):
    """Draws whose lag-1 autocorrelation is 0.1 or so, their R-hat as it was."""
    return draws[:, 1:] + 0.1 * draws[:, :-1]


FAULTS = {
    "at least 10000 draws": lambda z: {"draws": {"z": z[:, :-2]}},
    "R-hat below 1.01": lambda z: {"draws": {"z": z[:, 1:] + 0.3 * torch.arange(4.0)[:, None]}},
    "abs(lag-1 autocorrelation) below 0.05": lambda z: {"draws": {"z": smoothed(z)}},
    "E-FMI above 0.2": lambda z: {"energy": torch.cat([z[:3], z[3:].cumsum(1)])},
    "no divergences": lambda z: {"divergences": torch.tensor([0, 0, 1, 0])},
}


@pytest.mark.parametrize("criterion", FAULTS)
def test_each_criterion_refuses_what_it_is_for(criterion, tmp_path):
    """Independent draws pass; one fault fails its own criterion alone, and nothing is written."""
    z = independent(draws={"z": torch.randn(4, 2501)}).draws["z"]
    assert all(reference.criteria(independent(draws={"z": z})).values())
    faulty = independent(**FAULTS[criterion](z))
    found = reference.criteria(faulty)
    assert [what for what, holds in found.items() if not holds] == [criterion]
    with pytest.raises(zoo.ZooError, match="the run is no reference; it misses") as caught:
        reference.write(faulty, tmp_path, "faulty", {})
    assert criterion in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_reference_comes_back_as_it_was_written(tmp_path):
    chains = independent(shape=(2,))
    facts = reference.write(chains, tmp_path, "mine", {"method": "independent draws"})
    again, found = reference.load("mine", tmp_path)
    assert found == json.loads(json.dumps(facts))
    assert torch.equal(again.draws["z"], chains.draws["z"])
    assert set(found["diagnostics"]) == {"z[0]", "z[1]"}
    (tmp_path / "mine.safetensors").write_bytes(b"other")
    with pytest.raises(zoo.ZooError, match=r"not the file that mine\.json describes"):
        reference.load("mine", tmp_path)
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(zoo.ZooError, match="no reference, or damaged"):
        reference.load("mine", tmp_path)


def test_unknown_references_and_arguments_are_refused(tmp_path, capsys):
    for function in (reference.load, reference.make):
        with pytest.raises(
            zoo.ZooError, match="unknown reference 'nine_schools'; known: eight_sch"
        ):
            function("nine_schools")
    assert reference.main([]) == 2
    assert reference.main(["vae", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 2
    assert "names: eight_schools" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_draws": 12}, "at least 4 a chain, got 12"),
        ({"num_draws": 101}, "multiple of the 4 chains"),
        ({"num_chains": 1}, "num_chains of at least 2, got 1"),
        ({"thin": 0}, "thin and warmup must be at least 1, got 0"),
        ({"warmup": 0}, "thin and warmup must be at least 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(zoo.ZooError, match=message):
        sample(zoo.load("beta_bernoulli"), **arguments)


def test_nuts_refuses_discrete_latents():
    with pytest.raises(zoo.ZooError, match="latent z is discrete; guides with a categorical"):
        sample(zoo.load("bernoulli_mixture"))


@pytest.mark.slow
def test_a_short_run_draws_from_the_posterior_and_leaves_no_trace():
    """The coin, whose posterior is known: mean and energy; the global random state stays."""
    problem = zoo.load("beta_bernoulli")
    before = torch.get_rng_state()
    chains = sample(problem, num_draws=200, num_chains=2, warmup=60, thin=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert not pyro.get_param_store().keys()
    one, two, other = (sample(problem, 8, 2, 5, seed=seed).draws["p"] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert len(torch.cat([one, other]).unique()) == 16  # four chains, all different
    p, exact = chains.draws["p"], problem.posterior(problem.data.train)
    assert p.shape == (2, 100)
    assert chains.energy.shape == (2, 200)
    se = exact.stddev.item() / math.sqrt(reference.diagnostics(chains)["p"]["ess"])
    assert p.mean().item() == pytest.approx(exact.mean.item(), abs=4 * se)
    # The energy is -log p(x, p) - log |Jacobian| + chi^2_1 / 2, the last of mean 1/2.
    draws = exact.sample((20_000,)).double()
    joint = problem.log_joint(problem.model, problem.data.train, p=draws)
    potential = -(joint + draws.log() + (1 - draws).log())
    se = chains.energy.std().item() / math.sqrt(100)  # of 400 correlated values
    assert chains.energy.mean().item() == pytest.approx(potential.mean().item() + 0.5, abs=4 * se)


@pytest.mark.slow
def test_nuts_takes_parameters_as_they_are_and_local_latents():
    """gaussian_lvm with learned parameters: posterior means of every row; parameters unmoved."""
    problem = zoo.load("gaussian_lvm", data=torch.randn(3, 4), latent_dim=1)
    with torch.no_grad():
        problem.model.weight.fill_(1.0)
    chains = sample(problem, num_draws=100, num_chains=2, warmup=50)
    exact = problem.posterior(problem.data.train)
    found = reference.diagnostics(chains)
    for n in range(3):
        own = found[f"z[{n}, 0]"]
        sd = exact.variance[n, 0].sqrt().item()
        assert own["mean"] == pytest.approx(exact.mean[n, 0].item(), abs=4 * sd / own["ess"] ** 0.5)
    assert all(p.requires_grad and p.grad is None for p in problem.model.parameters())

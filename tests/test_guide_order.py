"""Which guide is nearer to the truth, on models that stay as they are."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch

import experiments
import guides
import zoo
from experiments.measure.gaps import gap_values, own_and_best

BUDGET = {"steps": 1500, "batch_size": 256, "learning_rate": 0.02, "row_learning_rate": 0.2}
SEEDS = 3
GUIDES = {
    "oracle": {},
    "laplace": {},
    "full_rank": {},
    "low_rank": {"rank": 2},
    "flow": {},
    "amortized_full_rank": {"hidden": []},
    "amortized_flow": {"hidden": []},
    "importance": {},
    "semi_amortized": {},
    "mean_field": {},
    "linear": {},
    "amortized": {},
    "constant": {},
}


@pytest.fixture(scope="module")
def correlated():
    """gaussian_lvm, fitted, one direction made weaker, both turned: posteriors are correlated."""
    problem = zoo.load("gaussian_lvm")
    fit = experiments.fit(problem, guides.build("oracle", problem), **BUDGET)
    model = deepcopy(fit.models[0])
    half = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    with torch.no_grad():
        _, _, axes = torch.linalg.svd(model.weight, full_matrices=False)
        model.weight.copy_(model.weight @ axes.mT * torch.tensor([1.0, 0.3]) @ half)
    return problem.having(model=model).frozen()


def measured(problem, name, options, seeds=SEEDS, rows=None, restarts=0, **budget):
    """{gap: (seeds,) nats a held-out datum} of a guide fitted to a model that stays as it is."""
    guide = guides.build(name, problem, **options)
    if any(parameter.requires_grad for parameter in guide.parameters()):
        fitted = experiments.fit(problem, guide, seeds=seeds, **(BUDGET | budget)).guides
    else:
        fitted = [guide]
    found, x = [], problem.data.test[:rows]
    for one in fitted:
        own, best = own_and_best(problem, one, x, restarts)
        values = gap_values(problem, own, x, None if best is None else best.guide)
        found.append({n: v.mean().item() for n, v in values.items() if "gap" in n})
    return {name: torch.tensor([one[name] for one in found]) for name in found[0]}


@pytest.fixture(scope="module")
def gaps(correlated):
    """{guide: {gap: (seeds,)}} of every guide of GUIDES."""
    # Laplace and the oracle have nothing to fit: they are built as they are.
    own = {"laplace": guides.laplace.Laplace, "oracle": guides.oracle.Oracle}
    found = {}
    for name, options in GUIDES.items():
        if name in own:
            x, guide = correlated.data.test, own[name](correlated)
            values = gap_values(correlated, guide, x, None)["total_gap"]
            found[name] = {"total_gap": values.mean()[None]}
        else:
            found[name] = measured(correlated, name, options)
        print(name, {gap: values.mean().item() for gap, values in found[name].items()})
    return found


@pytest.mark.slow
def test_families_that_hold_the_posterior_have_no_gap(gaps):
    free = ("oracle", "laplace", "full_rank", "low_rank", "flow")
    for name in (*free, "amortized_full_rank", "amortized_flow"):
        assert gaps[name]["total_gap"].abs().max() < 0.01, name


@pytest.mark.slow
def test_the_gap_of_independent_normals_is_that_of_algebra(correlated, gaps):
    """1/2 (sum log P_ii - log det P), the same for every x."""
    precision = correlated.posterior(correlated.data.test[:1]).precision_matrix[0]
    exact = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert exact > 0.05  # else this says nothing
    for name in ("mean_field", "linear", "amortized", "semi_amortized"):
        assert (gaps[name]["approximation_gap"] - exact).abs().max() < 0.005, name


@pytest.mark.slow
def test_guides_in_the_order_of_what_they_hold(gaps):
    """oracle <= flow, full_rank <= mean_field <= semi_amortized <= amortized <= constant.

    The bound of importance is never below that of its base, amortized.
    """
    order = ["mean_field", "semi_amortized", "amortized", "constant"]
    pairs = [("oracle", "flow"), ("oracle", "full_rank"), ("flow", "mean_field")]
    pairs += [("oracle", "importance"), ("importance", "amortized")]
    pairs += [("full_rank", "mean_field"), *pairwise(order)]
    for better, worse in pairs:
        one, other = gaps[better]["total_gap"], gaps[worse]["total_gap"]
        noise = (one.var(correction=0) + other.var(correction=0)).sqrt().item()
        assert one.mean() <= other.mean() + 0.001 + 2 * noise, (better, worse)


@pytest.mark.slow
def test_refinement_closes_most_of_the_amortization_gap(gaps):
    amortized = gaps["amortized"]["amortization_gap"]
    refined = gaps["semi_amortized"]["amortization_gap"]
    assert (refined >= -1e-3).all()
    assert refined.mean() < 0.5 * amortized.mean()


@pytest.mark.slow
def test_flow_is_nearer_than_a_normal_where_the_posterior_is_none():
    """A VAE of two latents, its decoder fitted once; total gaps by quadrature, paired by seed."""
    problem = zoo.load("vae")
    budget = BUDGET | {"learning_rate": 0.005}
    fit = experiments.fit(problem, guides.build("amortized", problem), **budget)
    problem = fit.problems[0].frozen()
    found = {
        name: measured(problem, name, {}, seeds=5, rows=150, restarts=3, learning_rate=0.005)
        for name in ("mean_field", "flow", "amortized", "amortized_flow")
    }
    for normal, flow in (("mean_field", "flow"), ("amortized", "amortized_flow")):
        gain = found[normal]["total_gap"] - found[flow]["total_gap"]
        se = gain.std() / len(gain) ** 0.5
        print(normal, found[normal]["total_gap"], flow, found[flow]["total_gap"], gain.mean() / se)
        assert gain.mean() > 4 * se, (normal, flow)

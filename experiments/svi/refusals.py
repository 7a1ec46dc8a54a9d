"""Guides that an objective cannot take, told by one run before a fit begins."""

import torch
from pyro import poutine

from experiments.measure.elbo import latent_names
from experiments.measure.streams import stream
from experiments.svi.discrete import check_switches
from experiments.svi.objectives import BY_DATUM, BY_PATH, is_plain
from experiments.svi.paths import Held, cut, drawn, total
from guides.checks import density_is_known
from zoo import testing
from zoo.errors import explained, require


def refuse_guide(config, problem, guide):
    """Refuse, in one line, a guide that the objective cannot take; guide: as a fit runs it.

    Raises ZooError.
    """
    check_switches(config, problem, guide)
    if config.estimator == "score":
        _check_scored(problem, guide)
    if is_plain(config) and config.estimator != "rws":
        return
    latent_names(guide, problem.data.train)  # refuses points
    if config.objective == "elbo":
        return _check_density(problem, guide, config.estimator)
    wrong = explained(f"the guide does not serve objective={config.objective}")
    with wrong, testing.quiet(), stream(0, problem.data.train.device), torch.no_grad():
        _check_draws(config, problem, guide)


def _check_scored(problem, guide):
    """Refuse to call score what takes the path through every latent."""
    x = problem.data.train
    wrong = explained("the guide does not run")
    with wrong, testing.quiet(), stream(0, x.device), torch.no_grad():
        sites = drawn(poutine.trace(guide).get_trace(x))
    require(
        any(not site["fn"].has_rsample for site in sites),
        "score is for latents without a path, and each of the guide's has one: take pathwise",
    )


def _check_density(problem, guide, estimator):
    """Refuse a guide that picks its latents among draws made anew: the pick has no gradient.

    That is right for the ELBO alone, whose terms add up to the same number whatever is picked.
    """
    x = problem.data.train
    with testing.quiet(), stream(0, x.device), torch.no_grad():
        known = density_is_known(guide, x, None, testing.values_of(testing.traced(guide, x)))
    use = "beta, annealing_steps and free_bits weigh log q by itself"
    instead = "take objective=elbo with nothing to weigh, or another guide"
    if estimator == "rws":
        use, instead = "rws takes the gradient of log q at draws", "take another estimator or guide"
    require(known, f"{use}, and the guide knows it at its own draws alone: {instead}")


def _check_draws(config, problem, guide):
    x, name = problem.data.train, config.objective
    trace = poutine.trace(guide).get_trace(x)
    for site in drawn(trace):
        require(
            site["fn"].has_rsample,
            f"objective={name} needs a path through every latent, and the guide's "
            f"{type(site['fn']).__name__} of {site['name']!r} has none: take objective=elbo",
        )
        frames = [frame.name for frame in site["cond_indep_stack"]]
        require(
            name not in BY_DATUM or problem.plate in frames,
            f"objective={name} weighs the draws of each datum, and the guide draws "
            f"{site['name']!r} for all data together: take elbo or stl",
        )
    if name in BY_PATH:
        _check_same_again(name, guide, x, trace)


def _check_same_again(name, guide, x, trace):
    """Refuse a guide whose log q at the same draws is another one when it runs again."""
    again = poutine.trace(Held(cut(trace))(guide)).get_trace(x)
    for one in (trace, again):
        one.compute_log_prob()
    first, second = total(trace), total(again)
    require(
        torch.isclose(first, second, rtol=1e-3, atol=1e-3),
        f"objective={name} scores the guide's draws twice, and their log q was {first:.6g} nats, "
        f"then {second:.6g}: the guide must draw nothing but its latents (no dropout, no draws "
        "to choose among)",
    )

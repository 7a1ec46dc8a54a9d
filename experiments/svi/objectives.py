"""What a fit maximizes: the ELBO, or another bound of the same draws.

elbo   E log p(x, z) - log q(z), its KL part weighted by beta, annealing and free bits: kl.py
stl    the ELBO, by a gradient without the score of log q: paths.py
iwae   E log mean exp over a datum's particles of log p - log q: importance.py
dreg   the same bound, by a gradient for the guide without its score: importance.py
renyi  Renyi's bound of order alpha; 0 is iwae, and the limit 1 the ELBO: importance.py

Whatever the objective, the loss of a step is the plain -ELBO of its draws; only the gradient is the
objective's.  A guide that shares parameters with the model, or has none of its own, needs nothing
special: each tensor has the gradient of what it does in log p, in log q and in the draws.  An
oracle (guides/oracle.py), which cuts its posterior off from the model, does nothing in the last
two, so that only log p at its draws moves the model, under every objective.
"""

from functools import partial

from experiments.svi.importance import doubly_reparametrized, log_mean, renyi, weighted
from experiments.svi.kl import pressed
from experiments.svi.paths import sticking_the_landing
from zoo.errors import require

BY_DATUM = ("iwae", "dreg", "renyi")
"""Objectives that weigh the particles of a datum against each other."""
PARTICLES = 8
"""Their particles where none are asked for."""
NOT_THE_ELBO = ("vimco", "rws")
"""Estimators of the gradient of something else."""
BY_PATH = ("stl", "dreg")
"""Objectives that score the same draws twice."""


def is_plain(config):
    """Whether a fit maximizes the ELBO as it is."""
    return config.objective == "elbo" and not _weighs_kl(config)


def _weighs_kl(config):
    return config.beta != 1 or config.annealing_steps > 0 or config.free_bits > 0


def losses(config, problem):
    """The function (elbo, model, guide, args) -> (loss, surrogate) of a config's objective.

    None stands for the ELBO as it is.
    """
    if is_plain(config):
        return None
    plate = problem.plate
    return {
        "elbo": pressed(config, plate),
        "stl": sticking_the_landing,
        "iwae": weighted(log_mean, plate),
        "dreg": partial(doubly_reparametrized, plate),
        "renyi": weighted(partial(renyi, config.alpha), plate),
    }[config.objective]


def check_settings(config, problem):
    """Refuse, in one line, settings of the objective that mean nothing; the estimator is resolved.

    Raises ZooError.
    """
    name = config.objective
    require(
        name == "renyi" or config.alpha == type(config).model_fields["alpha"].default,
        f"alpha is the order of Renyi's bound: take objective=renyi, not {name}",
    )
    require(config.alpha != 1, "Renyi's bound of order alpha=1 is the ELBO: take objective=elbo")
    require(
        name == "elbo" or not _weighs_kl(config),
        f"beta, annealing_steps and free_bits weigh the KL part of objective=elbo, not of {name}",
    )
    raised = is_plain(config) and config.estimator not in NOT_THE_ELBO
    require(
        raised or name == "stl" or config.flat_window == 0,
        "the stopping rule watches the ELBO, which is not what this fit maximizes: take "
        "flat_window=0",
    )
    if not is_plain(config):
        _check_latents(config, problem)
        _check_annealing(config)
        _check_estimator(config, problem)


def _check_latents(config, problem):
    name = config.objective
    require(
        problem.latents,
        f"{problem.name} has no latents, so that every objective is its log density: take "
        "objective=elbo with nothing to weigh",
    )
    points = ", ".join(latent.name for latent in problem.latents if not latent.proper)
    require(
        not points,
        f"{points} can only be a point, which has no log q to weigh: take objective=elbo with "
        "nothing to weigh",
    )
    shared = ", ".join(latent.name for latent in problem.latents if not latent.local)
    require(
        name not in BY_DATUM or not shared,
        f"objective={name} weighs the draws of each datum, and {shared} is shared by all data: "
        "take elbo or stl",
    )


def _check_annealing(config):
    require(
        config.annealing_steps <= config.steps,
        f"annealing_steps must be at most the {config.steps:,} steps of the fit, got "
        f"{config.annealing_steps:,}",
    )


def _check_estimator(config, problem):
    discrete = ", ".join(latent.name for latent in problem.latents if latent.support.is_discrete)
    require(
        config.objective == "elbo" or not discrete,
        f"objective={config.objective} needs a path through every latent, and {discrete} is "
        "discrete: take objective=elbo",
    )
    require(
        config.objective == "elbo" or config.estimator == "pathwise",
        f"objective={config.objective} needs estimator=pathwise, got {config.estimator}",
    )
    require(
        config.estimator in ("pathwise", "score", "enumeration"),
        "beta, annealing_steps and free_bits need estimator pathwise, score or enumeration, got "
        f"{config.estimator}",
    )
    require(
        config.free_bits == 0 or config.estimator != "enumeration",
        "free_bits counts nats of draws, and enumeration has none: take estimator=score",
    )

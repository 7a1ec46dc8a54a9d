"""The estimators for discrete latents beside `score` and `enumeration`, and what each is for."""

import math

import torch
from pyro import poutine

from experiments.svi.baselines import Baseline, Nvil, Running, RunningMean
from experiments.svi.bernoulli import is_discrete_latent, logits_of
from experiments.svi.disarm import Disarm
from experiments.svi.gumbel_softmax import GumbelSoftmax
from experiments.svi.relax import ControlVariate, Relax
from experiments.svi.vimco import Vimco
from experiments.svi.wake_sleep import WakeSleep
from zoo.distributions import is_boolean
from zoo.errors import explained, require
from zoo.problem import sample_sites
from zoo.testing import quiet, traced

KINDS = {
    "running_mean": RunningMean,
    "nvil": Nvil,
    "vimco": Vimco,
    "rws": WakeSleep,
    "gumbel_softmax": GumbelSoftmax,
    "relax": Relax,
    "disarm": Disarm,
}
BIASED = ("rws", "gumbel_softmax")
"""Whose mean gradient is not that of their objective."""
PARTICLES = {"score": 8, "vimco": 8, "rws": 8, "disarm": 2}
"""Draws a datum and step where the config leaves them open; 1 for the others."""
SWITCHES = ("gumbel_softmax", "relax", "disarm")
"""Which need Bernoulli latents."""
RELAXED = ("gumbel_softmax", "relax")
"""Which have a temperature, and feed the model switches between 0 and 1."""
ALONE = ("relax", "disarm")
"""Which need one latent and no other beside it."""
OTHERS = "use score or enumeration"


def module(config, problem):
    """What an estimator learns or keeps itself, a module; None where there is nothing."""
    train = problem.data.train
    if config.estimator == "running_mean":
        return Running().to(train)
    if config.estimator == "nvil":
        return Baseline(train).to(train)
    if config.estimator == "relax":
        size = math.prod(problem.latents[0].event_shape)
        return ControlVariate(train, size, config.temperature).to(train)
    return None


def own_module(modules):
    """The module that `module` made, among those of a run; None where it made none."""
    return dict(modules.items()).get("estimator")


def check_problem(estimator, problem, num_particles):
    """Refuse a problem that an estimator of KINDS does not suit, in one line."""
    name = problem.name
    discrete = [latent for latent in problem.latents if latent.support.is_discrete]
    require(
        discrete or estimator == "rws",
        f"{estimator} is for discrete latents, {name} has none: use pathwise",
    )
    require(
        not problem.joint,
        f"{estimator} weighs each datum by its own draws, and the rows of {name} share a latent: "
        f"{OTHERS}",
    )
    if estimator in ("vimco", "rws"):
        require(num_particles >= 2, f"{estimator} needs num_particles of at least 2 to compare")
    if estimator == "disarm":
        require(num_particles % 2 == 0, "disarm draws pairs: num_particles must be even")
    if estimator in SWITCHES:
        others = [latent.name for latent in discrete if not is_boolean(latent.support)]
        require(
            not others,
            f"{estimator} is for Bernoulli latents, and {', '.join(others)} has other values: "
            f"{OTHERS}, or vimco, rws, nvil or running_mean",
        )
    if estimator in ALONE:
        names = ", ".join(latent.name for latent in problem.latents)
        require(
            len(problem.latents) == 1,
            f"{estimator} takes one latent, a vector of switches, and {name} has {names}: "
            f"{OTHERS}, or vimco, rws, nvil or running_mean",
        )
    if estimator in RELAXED:
        _check_relaxed(estimator, problem, discrete)


def _check_relaxed(estimator, problem, discrete):
    """Refuse a model through which no path leads from relaxed switches."""
    x = problem.data.train[:2]
    values = {
        latent.name: torch.rand(len(x), *latent.event_shape).to(x).requires_grad_()
        for latent in discrete
    }
    wrong = explained(f"{estimator} feeds {problem.name} switches between 0 and 1, and it fails")
    with torch.random.fork_rng([]), quiet(), wrong:
        trace = poutine.trace(poutine.condition(problem.model, data=values)).get_trace(x)
        trace.compute_log_prob()
    for name, value in values.items():
        others = [site for site in sample_sites(trace) if site["name"] != name]
        density = sum(site["log_prob_sum"] for site in others)
        found = density.requires_grad and torch.autograd.grad(
            density, value, allow_unused=True, retain_graph=True
        )
        require(
            found and found[0] is not None,
            f"{estimator} feeds {problem.name} switches between 0 and 1, and no gradient comes "
            f"back from what follows {name}: {OTHERS}, or vimco or disarm",
        )


def check_switches(config, problem, guide):
    """Refuse a guide whose switches are not independent, where an estimator needs them so."""
    if config.estimator not in SWITCHES:
        return
    with torch.random.fork_rng([]), quiet(), torch.no_grad():
        for site in sample_sites(traced(guide, problem.data.train)):
            if is_discrete_latent(site):
                logits_of(site)

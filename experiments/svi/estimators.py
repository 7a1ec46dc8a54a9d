"""How the gradient of the bound passes a latent, and what happens when the bound is not finite.

pathwise     through reparametrized draws: Pyro's Trace_ELBO as it is
score        the score function with a leave-one-out baseline over particles
enumeration  the exact sum over the values of discrete latents: Pyro's TraceEnum_ELBO
running_mean, nvil, vimco, rws, gumbel_softmax, relax, disarm
             estimators for discrete latents, a file each: experiments/svi/discrete.py
closed_form  no gradient at all: the model's maximum likelihood, where it has a closed form
"""

import math

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

from experiments.svi import objectives
from experiments.svi.config import FitConfig
from experiments.svi.discrete import (
    KINDS,
    PARTICLES,
    RELAXED,
    check_problem,
    module,
    own_module,
)
from experiments.svi.surrogate import enumerated_particle, mean_losses, particle
from zoo.distributions import MAX_VALUES
from zoo.errors import ZooError, require
from zoo.problem import require_problem, sample_sites

MIN_WINDOW = 10  # shorter windows say nothing of a trend


class FitError(ZooError):
    """A run that had to stop: the message names the site and the step."""


def resolve(config, problem):
    """The config with estimator and num_particles written out for this problem."""
    require_problem("fit", problem)
    require(
        config.flat_window == 0 or config.flat_window >= MIN_WINDOW,
        f"flat_window must be 0 or at least {MIN_WINDOW} epochs, got {config.flat_window}",
    )
    discrete = [latent for latent in problem.latents if latent.support.is_discrete]
    finite = can_enumerate(discrete)
    estimator = config.estimator
    if estimator == "auto":
        estimator = "pathwise" if not discrete else "enumeration" if finite else "score"
        estimator = "closed_form" if problem.maximum_likelihood is not None else estimator
    if estimator == "closed_form":
        require(
            problem.maximum_likelihood is not None,
            f"{problem.name} has no closed form of maximum likelihood: take estimator=auto",
        )
    names = ", ".join(latent.name for latent in discrete)
    if estimator == "pathwise":
        require(not discrete, f"no path through discrete {names}: use score or enumeration")
    if estimator == "enumeration":
        require(discrete, "nothing to enumerate: no latent is discrete; use pathwise")
        require(finite, f"{names} cannot be enumerated: {_too_many(discrete)}; use score")
    require(
        estimator in RELAXED or config.temperature == FitConfig.model_fields["temperature"].default,
        f"temperature is that of relaxed switches, of {' or '.join(RELAXED)}, not {estimator}",
    )
    objectives.check_settings(config.model_copy(update={"estimator": estimator}), problem)
    several = objectives.PARTICLES if config.objective in objectives.BY_DATUM else 1
    num_particles = config.num_particles or PARTICLES.get(estimator, several)
    if estimator in KINDS:
        check_problem(estimator, problem, num_particles)
    if estimator == "score":
        require(problem.latents, f"{problem.name} has no latents whose score there is: take auto")
        require(num_particles >= 2, "score needs num_particles of at least 2 for its baseline")
    return config.model_copy(update={"estimator": estimator, "num_particles": num_particles})


def can_enumerate(latents):
    """Whether all values of discrete latents together are few enough to sum over."""
    counts = [latent.num_values for latent in latents]
    return None not in counts and math.prod(counts) <= MAX_VALUES


def _too_many(latents):
    counts = [latent.num_values for latent in latents]
    if None in counts:
        return (
            f"not finite, more than {MAX_VALUES:,} values, or a vector whose prior is not zoo's "
            "BernoulliVector or CategoricalVector"
        )
    return f"{math.prod(counts):,} values together, more than {MAX_VALUES:,}"


def elbo(config, problem, modules=None):
    """The Pyro ELBO object of a resolved config.

    modules: a run's; what the estimator itself learns or keeps is its "estimator", made anew where
    there are none.
    """
    kind = {"pathwise": Pathwise, "score": LeaveOneOut, "enumeration": Enumeration} | OF_DISCRETE
    bound = kind[config.estimator](
        num_particles=config.num_particles,
        vectorize_particles=config.num_particles > 1,
        max_plate_nesting=1,
    )
    if config.estimator in KINDS:
        bound.temperature, bound.plate = config.temperature, problem.plate
        bound.own = module(config, problem) if modules is None else own_module(modules)
    bound.losses = objectives.losses(config, problem) or mean_losses
    return bound


class Finite:
    """Mixin of an ELBO: a loss that is not finite stops before the parameters are touched.

    own, updates: see experiments.svi.per_datum.PerDatum.  losses: what makes (loss, surrogate) of
    (self, model, guide, args), by the objective.  step: the number of steps taken, a number or a
    tensor (), which whoever takes a step sets before.
    """

    own, updates = None, {}
    losses, step = staticmethod(mean_losses), 0

    def terms(self, model, guide, *args):
        """(loss, surrogate) as tensors: the gradient is that of the surrogate.

        The loss is the plain -ELBO, nats, whatever the objective.  What a guide adds by
        `extra_loss` is in the gradient alone.
        """
        loss, surrogate = self.losses(self, model, self.seen(guide), args)
        extra_loss = getattr(guide, "extra_loss", None)
        return loss, surrogate if extra_loss is None else surrogate + extra_loss(*args)

    def seen(self, guide):
        """The guide as the bound runs it."""
        return guide

    def loss_and_grads(self, model, guide, *args):
        before = torch.get_rng_state()
        loss, surrogate = self.terms(model, guide, *args)
        value = loss.item()
        if not math.isfinite(value):
            torch.set_rng_state(before)  # on the CPU, the same draws again
            raise FitError(f"the loss is {value} {blame(model, guide, args)}")
        if self.own is not None:
            self.own.zero_grad()  # Pyro knows of model and guide alone
        surrogate.backward()
        for name, now in self.updates.items():
            self.own.get_buffer(name).copy_(now)
        return value


class Pathwise(Finite, Trace_ELBO):
    """Reparametrized draws; the score function where a continuous draw has no path."""

    def particle(self, model_trace, guide_trace):
        return particle(model_trace, guide_trace, self._weight)

    def _weight(self, log_r):
        """What multiplies a score, from log p - log q of what depends on its draw."""
        return log_r


class LeaveOneOut(Pathwise):
    """The score function, each particle's baseline the mean of the others.

    The baseline depends on other draws only, so the gradient stays unbiased; the plate of the
    data is used, so that a datum is weighed by its own terms.
    Source: Kool, van Hoof & Welling 2019, Buy 4 REINFORCE samples, get a baseline for free!, eq. 8.
    """

    def _weight(self, log_r):
        log_r = log_r.reshape((1,) * (self.max_plate_nesting - log_r.dim()) + log_r.shape)
        others = (log_r.sum(0, keepdim=True) - log_r) / (self.num_particles - 1)
        return log_r - others


class Enumeration(Finite, TraceEnum_ELBO):
    """The exact expectation over discrete latents of the guide."""

    def seen(self, guide):
        return config_enumerate(guide, "parallel")

    def particle(self, model_trace, guide_trace):
        return enumerated_particle(model_trace, guide_trace)


OF_DISCRETE = {name: type(kind.__name__, (Finite, kind), {}) for name, kind in KINDS.items()}


def blame(model, guide, args):
    """Which parameter or site is not finite, in words; sites from draws made anew."""
    with torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(*args)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args)
    for trace in (guide_trace, model_trace):
        for name, site in trace.nodes.items():
            if site["type"] == "param" and not torch.isfinite(site["value"]).all():
                return f"because parameter {name!r} is not finite"
    for where, trace in (("guide", guide_trace), ("model", model_trace)):
        for site in sample_sites(trace):
            if not torch.isfinite(site["fn"].log_prob(site["value"])).all():
                return f"at site {site['name']!r} of the {where}"
    return "at no single site of draws made anew"

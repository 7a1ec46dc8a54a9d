"""Draws from a guide with their log p and log q, and the bound that they estimate."""

import math
from dataclasses import dataclass, replace

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta

from experiments.measure.streams import stream
from zoo.errors import explained, require
from zoo.problem import base_distribution, sample_sites

CELLS_AT_ONCE = 60_000  # draws x data in one pass, which bounds the memory


@dataclass(frozen=True)
class Draws:
    """Draws of a guide's latents for n data, and the log densities at them, in nats.

    latents: {name: (draws, n, ...)}, without n outside the plate.
    log_p, log_q: (draws, n), each datum's own terms; shared_log_p, shared_log_q: (draws,), the
    terms outside the plate; the log q of a point estimate are None.
    log_likelihood: {observed site: (draws, n)}.
    """

    latents: dict
    log_p: torch.Tensor
    log_q: torch.Tensor | None
    shared_log_p: torch.Tensor
    shared_log_q: torch.Tensor | None
    log_likelihood: dict

    @property
    def log_weight(self):
        """log p - log q of every draw and datum: (draws, n)."""
        return self.log_p - self.log_q

    @property
    def total_log_weight(self):
        """log p - log q of every draw and all data together: (draws,) in float64."""
        return self.log_weight.double().sum(1) + self.shared_log_p - self.shared_log_q


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate and its standard error."""

    value: float
    se: float


@torch.no_grad()
def draw(model, guide, x, num_draws, seed=0, index=None, need_log_q=True):
    """`num_draws` draws of the guide for the rows x (n, d), by a random stream of their own.

    index: (b,) draws for these rows only.  need_log_q: refuse a point estimate, which has none.
    Raises ZooError for a guide without log q.
    """
    at_once = max(1, CELLS_AT_ONCE // (len(x) if index is None else len(index)))
    with stream(seed, x.device):
        if getattr(guide, "latents", None) == ():  # nothing is drawn: one pass has every density
            return _repeated(run_pair(model, guide, x, 1, index, need_log_q), num_draws)
        sizes = [min(at_once, num_draws - done) for done in range(0, num_draws, at_once)]
        return _join([run_pair(model, guide, x, size, index, need_log_q) for size in sizes])


def elbo(draws):
    """The bound divided by the number of data, nats, with its standard error over draws."""
    num_data = draws.log_p.shape[1]
    bounds = draws.total_log_weight / num_data
    se = bounds.std().item() / math.sqrt(len(bounds)) if len(bounds) > 1 else math.nan
    return Estimate(bounds.mean().item(), se)


def log_weights(problem, guide, x, num_draws, seed=0):
    """log p - log q of every draw and independent unit: (draws, units) nats.

    The units are the rows of x; those of a joint problem are one unit together.
    """
    draws = draw(problem.model, guide, x, num_draws, seed)
    return draws.total_log_weight[:, None] if problem.joint else draws.log_weight


def run_pair(model, guide, x, size, index=None, need_log_q=True):
    """`size` draws in one pass, by the stream and with the gradients of those who call: Draws."""

    def vectorized(program):
        with pyro.plate("draws", size, dim=-2):
            return program(x, index)

    guide_trace = poutine.trace(vectorized).get_trace(guide)
    points = _points(guide_trace)
    if need_log_q:
        _refuse(guide, points)
    replayed = poutine.replay(vectorized, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(model)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    shape = (size, len(x) if index is None else len(index))
    latents, likelihood = {}, {}
    for site in sample_sites(model_trace):
        if site["is_observed"]:
            likelihood[site["name"]] = site["unscaled_log_prob"].expand(shape)
        else:
            local = any(f.name != "draws" for f in site["cond_indep_stack"] if f.vectorized)
            value = site["value"]
            latents[site["name"]] = value if local else value.squeeze(1)
    log_p, shared_log_p = _sums(model_trace, shape)
    log_q, shared_log_q = (None, None) if points else _sums(guide_trace, shape)
    return Draws(latents, log_p, log_q, shared_log_p, shared_log_q, likelihood)


def latent_names(guide, x):
    """The names of a guide's sites, after refusing one without log q, or that does not run on x."""
    wrong = explained(f"the guide does not run on rows of shape {tuple(x.shape)}")
    with wrong, stream(0, x.device), torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
    _refuse(guide, _points(trace))
    return {site["name"] for site in sample_sites(trace)}


def _refuse(guide, points):
    """One line for a guide that puts latents at points."""
    require(
        not points,
        f"guide {getattr(guide, 'name', 'given')!r} has no log q: it is a point estimate of "
        f"{', '.join(points)}; a bound, gaps and k need a guide with a density",
    )


def _points(guide_trace):
    """The latents that the guide puts at a point: Deltas that no auxiliary site feeds."""
    sites = sample_sites(guide_trace)
    auxiliary = any(site["infer"].get("is_auxiliary") for site in sites)
    points = [site for site in sites if isinstance(base_distribution(site["fn"]), Delta)]
    return [site["name"] for site in points if not (auxiliary and _varies(site))]


def _varies(site):
    """Whether the site's value differs between draws; not to be told from one draw, so yes."""
    value = site["value"]
    return value.dim() == 0 or len(value) == 1 or bool((value != value[:1]).any())


def _sums(trace, shape):
    """The log densities of a trace's sites inside the plate, (draws, n), and outside, (draws,)."""
    inside, outside = torch.zeros(shape), torch.zeros(shape[0])
    for site in sample_sites(trace):
        log_prob = site["unscaled_log_prob"]
        inside, outside = inside.to(log_prob), outside.to(log_prob)
        if any(f.name != "draws" for f in site["cond_indep_stack"] if f.vectorized):
            inside = inside + log_prob
        else:
            outside = outside + log_prob.reshape(shape[0])
    return inside, outside


def _repeated(draws, count):
    """A draw of no latents, which every other equals."""
    repeated = {
        name: value.expand(count, *value.shape[1:])
        for name, value in vars(draws).items()
        if isinstance(value, torch.Tensor)
    }
    likelihood = {name: v.expand(count, -1) for name, v in draws.log_likelihood.items()}
    return replace(draws, log_likelihood=likelihood, **repeated)


def _join(parts):
    def cat(field):
        values = [getattr(part, field) for part in parts]
        if values[0] is None:
            return None
        if isinstance(values[0], dict):
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}
        return torch.cat(values)

    return Draws(*(cat(field) for field in Draws.__dataclass_fields__))

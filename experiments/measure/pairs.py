"""Draws from any Pyro model and guide, with pointwise log densities by plate; no ArviZ.

Every tensor comes out as (draws, plates from left to right, event).  Plates are whole: a plate
that draws a minibatch takes all its indices, one with `subsample=index` takes these.  No scale
enters a density.  Discrete latents that the guide leaves to enumeration are drawn from their
posterior given the others by `infer_discrete`, and are summed out of the densities.
"""

from dataclasses import dataclass, field
from numbers import Integral

import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger

from experiments.measure.enumerated import Factors
from experiments.measure.label import Label
from experiments.measure.structure import DRAWS, latents_only, plates_of, structure_of
from experiments.measure.whole import empty_state, surroundings
from zoo.errors import explained, require
from zoo.problem import sample_sites

CELLS_AT_ONCE = 60_000  # draws x data in one parallel run, which bounds the memory


@dataclass(frozen=True)
class Pair:
    """A model and a guide, the arguments of both, and the parameter store that they run in."""

    model: object
    guide: object
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    state: dict = field(default_factory=empty_state)

    @property
    def device(self):
        """That of the first tensor among the arguments, else the CPU."""
        tensors = [a for a in (*self.args, *self.kwargs.values()) if isinstance(a, torch.Tensor)]
        return tensors[0].device if tensors else torch.device("cpu")

    def call(self, program, size=None, nesting=0):
        """The program on its arguments, under a plate of `size` draws where one is given."""

        def vectorized():
            with pyro.plate(DRAWS, size, dim=-1 - nesting):
                return program(*self.args, **self.kwargs)

        return (lambda: program(*self.args, **self.kwargs)) if size is None else vectorized


@dataclass(frozen=True)
class PairDraws:
    """Draws of a pair: in every group {name: (plate names, tensor (draws, plates, event))}.

    log_likelihood: pointwise nats of every observed site, under its conditional density, or with
    the enumerated latents that share its plates summed out.
    sample_stats: log_p and log_q, (draws, n) in the unit plate, (draws,) of everything where there
    is none; shared_log_p and shared_log_q (draws,), the terms outside the unit plate; total_log_p
    and total_log_q (draws,), all terms in float64.
    observed_data: as the others, but without draws.  indices: {plate: its indices}.
    """

    posterior: dict
    log_likelihood: dict
    sample_stats: dict
    prior: dict
    prior_predictive: dict
    posterior_predictive: dict
    observed_data: dict
    indices: dict


def require_whole(num_draws, seed):
    """Refuse a number of draws or a seed that is no whole number."""
    for name, value in (("num_draws", num_draws), ("seed", seed)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        require(whole, f"{name} must be a whole number, got {value!r}")
    require(num_draws >= 1, f"num_draws must be at least 1, got {num_draws}")


def draw_pair(pair, num_draws, seed=0, parallel=False, prior=True, predictive=True, densities=True):
    """`num_draws` draws of a Pair by a random stream of their own: PairDraws.

    parallel: many draws in one run under an outer plate, for programs that index from the right.
    prior, predictive: whether to draw the prior with its data, and the posterior's data.
    densities: whether to have log_likelihood and sample_stats; a point in the guide has no log q.
    Raises ZooError where model and guide do not suit each other, a latent is a point in the
    guide, an observed site stands in no plate, or a density is not a number.
    """
    require_whole(num_draws=num_draws, seed=seed)
    with surroundings(seed, pair.state, pair.device) as indices:
        found = structure_of(pair, densities)
        at_once = max(1, CELLS_AT_ONCE // found.cells) if parallel else 1
        sizes = [min(at_once, num_draws - done) for done in range(0, num_draws, at_once)]
        wanted = (prior, predictive, densities)
        parts = [_run(pair, found, size if parallel else None, *wanted) for size in sizes]
        first, label = parts[0], Label(1, found)
        data = label.values(_Sites(found.observed), found.observed)
        observed = {name: (plates, value[0].cpu()) for name, (plates, value) in data.items()}
        groups = {group: _join([part[group] for part in parts]) for group in first}
        indices = {name: indices[name].cpu() for name in found.frames}
        return PairDraws(**groups, observed_data=observed, indices=indices)


def _run(pair, found, size, prior, predictive, densities):
    """Draws of one run: the groups of PairDraws."""
    label = Label(size or 1, found)
    model = pair.call(pair.model, size, found.nesting)
    with explained(_does_not_run(size)):
        guide_trace = _trace(pair.call(pair.guide, size, found.nesting))
        replayed = poutine.replay(model, trace=latents_only(guide_trace))
        trace, factors = _model_trace(replayed, found, size)
    free, posterior = _Unobserved(found.observed), latents_only(trace)
    with explained("replicated data cannot be drawn, leave them out with predictive=False"):
        again = _trace(free(poutine.replay(model, trace=posterior))) if predictive else None
    with explained("the prior cannot be drawn, leave it out with prior=False"):
        before = _trace(free(model)) if prior else None
    return {
        "posterior": label.values(trace, found.latents),
        **_all_densities(trace, factors, guide_trace, found, label, densities),
        "prior": label.values(before, found.latents) if prior else {},
        "prior_predictive": label.values(before, found.observed) if prior else {},
        "posterior_predictive": label.values(again, found.observed) if predictive else {},
    }


def _all_densities(trace, factors, guide_trace, found, label, wanted):
    """The groups of densities, empty where they are not wanted."""
    if not wanted:
        return {"log_likelihood": {}, "sample_stats": {}}
    log_p, log_q = _log_probs(trace), _log_probs(guide_trace)
    log_p = factors.marginal() if factors else log_p
    return {
        "log_likelihood": _log_likelihood(trace, factors, found, label),
        "sample_stats": _densities(log_p, log_q, found, label),
    }


def _does_not_run(size):
    if size is None:
        return "the pair does not run on these arguments"
    return "the pair does not run on many draws at once, try parallel=False"


def _model_trace(replayed, found, size):
    """The model's trace at the guide's draws; its Factors too where latents are enumerated."""
    if not found.enumerated:
        return _trace(replayed), None

    def config(site):
        return {"enumerate": "parallel" if site["name"] in found.enumerated else None}

    model = poutine.infer_config(replayed, config_fn=config)
    first_dim = -1 - found.nesting - (size is not None)
    with EnumMessenger(first_dim):
        factors = Factors(_trace(model), found.enumerated)
    return _trace(infer_discrete(model, first_available_dim=first_dim)), factors


def _trace(program):
    return poutine.trace(program).get_trace()


class _Unobserved(Messenger):
    """Draws the observed sites of these names; `poutine.uncondition` spares none."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def _pyro_sample(self, message):
        if message["name"] in self.names:
            message.update(is_observed=False, value=None, done=False)


class _Sites:
    """Sites by name, as a trace has them."""

    def __init__(self, nodes):
        self.nodes = nodes


def _log_probs(trace):
    """The log density of every site: [(plate names, tensor)]."""
    trace.compute_log_prob()
    return [(plates_of(site), site["log_prob"]) for site in sample_sites(trace)]


def _log_likelihood(trace, factors, found, label):
    pointwise = {}
    for name in found.observed:
        site = trace.nodes[name]
        marginal = factors.marginal_likelihood(name) if factors else None
        unit, terms = marginal or (plates_of(site), [(plates_of(site), site["log_prob"])])
        pointwise[name] = label.add(terms, unit, like=site["log_prob"])
    return pointwise


def _densities(log_p, log_q, found, label):
    """log p and log q inside the unit plate, outside it, and together."""
    stats, unit = {}, set() if found.unit is None else {found.unit}
    like = log_p[0][1]
    for name, terms in (("log_p", log_p), ("log_q", log_q)):
        inside = [term for term in terms if unit <= term[0]]
        stats[name] = label.add(inside, unit, like)
        if unit:
            outside = [term for term in terms if not unit <= term[0]]
            stats[f"shared_{name}"] = label.add(outside, set(), like)
        double = [(plates, tensor.double()) for plates, tensor in terms]
        total = stats[f"total_{name}"] = label.add(double, set(), like.double())
        require(not total[1].isnan().any(), f"{name} is not a number at a draw of the guide")
    return stats


def _join(parts):
    """Groups of several runs as one, their draws one after another, on the CPU."""
    return {
        name: (plates, torch.cat([part[name][1] for part in parts]).cpu())
        for name, (plates, _) in parts[0].items()
    }

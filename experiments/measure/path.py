"""The way from a distribution that can be drawn from, prior or guide, to p(x, z).

The densities between are start^(1 - beta) joint^beta, beta from 0 to 1.  Continuous latents are
vectors of real numbers: every latent is mapped out of its support, log-Jacobian included; finite
latents beside them are summed out of both densities.  Where all are discrete, one finite latent is
a place in a table of all its values, several or longer ones are vectors of whole numbers.
"""

import math
from dataclasses import dataclass
from itertools import product

import pyro
import torch
from pyro import poutine
from torch.distributions import biject_to

from experiments.measure.frozen import Frozen
from experiments.svi.run import as_module
from zoo.distributions import is_boolean
from zoo.errors import ZooError, require
from zoo.problem import sample_sites


@dataclass(frozen=True)
class State:
    """Points u (chains, units, size), the log densities (chains, units) of start and joint there,
    and the gradients of both, which discrete latents have not; u (chains, units) in a table."""

    u: torch.Tensor
    log_start: torch.Tensor
    log_joint: torch.Tensor
    grad_start: torch.Tensor | None = None
    grad_joint: torch.Tensor | None = None

    def log_density(self, beta):
        """The unnormalized log density at inverse temperature beta: (chains, units)."""
        return (1 - beta) * self.log_start + beta * self.log_joint

    def gradient(self, beta):
        """Its gradient: (chains, units, size)."""
        return (1 - beta) * self.grad_start + beta * self.grad_joint

    @property
    def slope(self):
        """What the log density gains per unit of beta: (chains, units) float64."""
        return self.log_joint.double() - self.log_start.double()

    def replaced(self, other, where):
        """This state, but the other where `where` (chains, units) is true."""

        def choose(old, new):
            return torch.where(where.reshape(where.shape + (1,) * (old.dim() - 2)), new, old)

        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return State(*(None if old is None else choose(old, new) for old, new in pairs))


class Densities:
    """log densities of a problem's latents, for rows `index` of x, from prior or guide.

    latents: those that a path moves.  Finite ones among others are summed out: `summed` has their
    values, {name: (c, *event_shape)}, of all c combinations.
    Values of latents are {name: (chains, n, ...)}, (chains, 1, ...) for those outside the plate.
    """

    def __init__(self, problem, x, guide=None, index=None):
        self.problem, self.x, self.index = problem, x, index
        self.num_rows = len(x) if index is None else len(index)
        self.model = Frozen(problem.model)
        self.guide = None if guide is None else Frozen(as_module(guide, problem))
        self.names = {latent.name for latent in problem.latents}
        smooth = tuple(la for la in problem.latents if not la.support.is_discrete)
        self.latents = smooth or problem.latents
        finite = [latent for latent in problem.latents if latent not in self.latents]
        every = zip(*product(*(latent.values for latent in finite)), strict=True)
        pairs = zip(finite, every, strict=True)
        self.summed = {la.name: torch.stack(values).to(x.device) for la, values in pairs}

    @torch.no_grad()
    def draw(self, chains):
        """Draws of the start: the latents' values."""
        trace = self._trace(self.guide or self.model, chains)
        return {name: trace.nodes[name]["value"] for name in self.names}

    def log_densities(self, values):
        """log of start and joint at the values of `latents`, both (chains, units)."""
        chains = len(next(iter(values.values())))
        values = self._with_summed(values, chains) if self.summed else values
        prior, likelihood = self._sums(self.model, values)
        start = prior if self.guide is None else self._sums(self.guide, values)[0]
        if not self.summed:
            return start, prior + likelihood
        both = (d.unflatten(0, (-1, chains)) for d in (start, prior + likelihood))
        return tuple(density.logsumexp(0) for density in both)

    def _with_summed(self, values, chains):
        """The values with every combination of the summed latents': c x chains of each."""
        count = len(next(iter(self.summed.values())))
        values = {name: v.repeat(count, *[1] * (v.dim() - 1)) for name, v in values.items()}
        for name, every in self.summed.items():
            own = every.repeat_interleave(chains, 0)[:, None]
            values[name] = own.expand(-1, self.num_rows, *own.shape[2:])
        return values

    def _sums(self, program, values):
        """The log densities of the latents and of all else at the values, (chains, units)."""
        chains = len(next(iter(values.values())))
        trace = self._trace(poutine.condition(program, data=values), chains)
        return self._sum(trace, True), self._sum(trace, False)

    def _trace(self, program, chains):
        with pyro.plate("draws", chains, dim=-2):
            trace = poutine.trace(program).get_trace(self.x, self.index)
        trace.compute_log_prob(lambda name, site: name in self.names or site["is_observed"])
        return trace

    def _sum(self, trace, of_latents):
        """The sum of the latents' sites, or of the others, over all that is one unit."""
        total = 0.0
        for site in sample_sites(trace):
            if (site["name"] in self.names) == of_latents:
                log_prob = site["unscaled_log_prob"]
                total = total + (log_prob.sum(-1, keepdim=True) if self.problem.joint else log_prob)
        return total


class Vectors:
    """Base of the paths whose points hold the numbers of all latents side by side."""

    def __init__(self, densities):
        self.densities, self.joint = densities, densities.problem.joint
        self.latents = densities.latents

    def draw(self, chains):
        """The state at draws of the start."""
        return self.at(self.densities.draw(chains))

    def at(self, values):
        """The state at values of the latents."""
        blocks = []
        for latent in self.latents:
            raw = self._raw(latent, values[latent.name])
            units = (raw.shape[0], 1, -1) if self.joint else (*raw.shape[:2], -1)
            blocks.append(raw.reshape(units))
        return self.evaluate(torch.cat(blocks, -1))

    def parts(self, u):
        """The numbers of each latent in u: (latent, (chains, rows, *its shape)) one by one."""
        first = 0
        for latent in self.latents:
            rows = self.densities.num_rows if latent.local else 1
            last = first + self._size(latent)
            yield latent, u[..., first:last].reshape(len(u), rows, *self._shape(latent))
            first = last

    def _size(self, latent):
        """How many numbers of a unit are the latent's."""
        rows = self.densities.num_rows if latent.local and self.joint else 1
        return math.prod(self._shape(latent)) * rows


class Continuous(Vectors):
    """A path over real vectors; `evaluate` answers with gradients."""

    def __init__(self, densities):
        super().__init__(densities)
        self.transforms = {latent.name: biject_to(latent.support) for latent in self.latents}

    def evaluate(self, u):
        """The state at u (chains, units, size); a density that is not a number counts as zero."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            values, log_jacobian = self.values(u)
            start, joint = (d + log_jacobian for d in self.densities.log_densities(values))
            grad_start = torch.autograd.grad(start.sum(), u, retain_graph=True)[0]
            grad_joint = torch.autograd.grad(joint.sum(), u)[0]
        start, joint = (_no_nan(d.detach()) for d in (start, joint))
        return State(u.detach(), start, joint, grad_start, grad_joint)

    def values(self, u):
        """The latents at u in their supports, and the log-Jacobian (chains, units)."""
        values, log_jacobian = {}, 0.0
        for latent, raw in self.parts(u):
            transform = self.transforms[latent.name]
            values[latent.name] = transform(raw)
            log_det = transform.log_abs_det_jacobian(raw, values[latent.name])
            log_jacobian = log_jacobian + log_det.reshape(*u.shape[:2], -1).sum(-1)
        return values, log_jacobian

    def _raw(self, latent, value):
        return self.transforms[latent.name].inv(value)

    def _shape(self, latent):
        shape = torch.Size(latent.event_shape)
        return self.transforms[latent.name].inverse_shape(shape)


class Entries(Vectors):
    """A path over the entries of discrete latents, u of whole numbers.

    counts: how many values each entry has.
    """

    def __init__(self, densities):
        super().__init__(densities)
        self.counts = [v.entry_values for v in self.latents for _ in range(self._size(v))]

    @torch.no_grad()
    def evaluate(self, u):
        """The state at u (chains, units, size); a density that is not a number counts as zero."""
        values = {
            latent.name: part if is_boolean(latent.support) else part.long()
            for latent, part in self.parts(u)
        }
        return State(u, *map(_no_nan, self.densities.log_densities(values)))

    def turned(self, state, place):
        """The states with 0, 1, 2, ... added to an entry, which goes on from its last value at 0.

        So every value of the entry stands in one of them, the present one in the first.
        """
        yield state
        for step in range(1, self.counts[place]):
            u = state.u.clone()
            u[..., place] = (u[..., place] + step) % self.counts[place]
            yield self.evaluate(u)

    def _raw(self, latent, value):
        return value

    def _shape(self, latent):
        return latent.event_shape


class Finite:
    """A path over one finite discrete latent in the plate, every value's densities in a table."""

    def __init__(self, densities):
        self.densities = densities
        (self.latent,) = densities.problem.latents
        values = self.latent.values.to(densities.x.device)[:, None]  # the same for every row
        with torch.no_grad():
            found = densities.log_densities({self.latent.name: values})
        self.start, self.joint = (d.expand(-1, densities.num_rows) for d in found)

    def draw(self, chains):
        """The state at draws of the start."""
        return self.at(self.densities.draw(chains))

    def at(self, values):
        """The state at values of the latent."""
        return self.evaluate(self.latent.places(values[self.latent.name]))

    def evaluate(self, u):
        """The state at places in the table, u (chains, units)."""
        return State(u, self.start.gather(0, u), self.joint.gather(0, u))


def path(problem, x, guide=None, index=None):
    """The path of a problem's latents from prior or guide: Continuous, Finite or Entries.

    Raises ZooError for latents that none suits, or a guide that has auxiliary latents.
    """
    return kind(problem)(Densities(problem, x, guide, index))


def kind(problem):
    """The path that suits a problem's latents.  Raises ZooError where there is none."""
    latents, subject = problem.latents, f"of {problem.name}"
    known = "problem.log_evidence(x) has the truth"
    if problem.truth.log_evidence is None:
        known = "state its density as log_joint, and problem.log_evidence(x) has the truth"
    require(latents, f"{problem.name} has no latents to anneal over: {known}")
    for latent in latents:
        improper = f"cannot anneal over latent {latent.name!r} {subject}: its prior is no density"
        require(latent.proper, improper)
    discrete = [latent for latent in latents if latent.support.is_discrete]
    if len(discrete) < len(latents):
        strange = [la for la in discrete if la.num_values is None or not la.local or problem.joint]
    elif len(latents) == 1 and latents[0].local and latents[0].num_values is not None:
        return Finite
    else:
        strange = [latent for latent in discrete if latent.entry_values is None]
    for latent in strange:
        raise ZooError(
            f"cannot anneal over discrete latent {latent.name!r} {subject}: possible are "
            "continuous latents, finite discrete ones a datum beside them, or alone discrete ones "
            "with a finite number of values; where the truth is known problem.log_evidence(x) "
            "has it"
        )
    return Continuous if len(discrete) < len(latents) else Entries


def _no_nan(log_density):
    return torch.where(log_density.isnan(), -math.inf, log_density)

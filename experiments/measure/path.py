"""The way from a distribution that can be drawn from, prior or guide, to p(x, z).

The densities between are start^(1 - beta) joint^beta, beta from 0 to 1, of all continuous latents
as vectors of real numbers: every latent is mapped out of its support, log-Jacobian included.
"""

import math
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch.distributions import biject_to

from experiments.measure.frozen import Frozen
from experiments.svi.run import as_module
from zoo.errors import require
from zoo.problem import sample_sites


@dataclass(frozen=True)
class State:
    """Points u (chains, units, size), the log densities (chains, units) of start and joint there,
    and the gradients of both; for discrete latents u is (chains, units), without gradients."""

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

    Values of latents are {name: (chains, n, ...)}, (chains, 1, ...) for those outside the plate.
    """

    def __init__(self, problem, x, guide=None, index=None):
        self.problem, self.x, self.index = problem, x, index
        self.num_rows = len(x) if index is None else len(index)
        self.model = Frozen(problem.model)
        self.guide = None if guide is None else Frozen(as_module(guide, problem))
        self.names = {latent.name for latent in problem.latents}

    @torch.no_grad()
    def draw(self, chains):
        """Draws of the start: the latents' values."""
        trace = self._trace(self.guide or self.model, chains)
        return {name: trace.nodes[name]["value"] for name in self.names}

    def log_densities(self, values):
        """log of start and joint at the values, both (chains, units)."""
        chains = len(next(iter(values.values())))
        trace = self._trace(poutine.condition(self.model, data=values), chains)
        prior, likelihood = self._sum(trace, True), self._sum(trace, False)
        if self.guide is None:
            return prior, prior + likelihood
        trace = self._trace(poutine.condition(self.guide, data=values), chains)
        return self._sum(trace, True), prior + likelihood

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


class Continuous:
    """A path over real vectors; `evaluate` answers with gradients."""

    def __init__(self, densities):
        self.densities, self.joint = densities, densities.problem.joint
        self.latents = densities.problem.latents
        self.transforms = {latent.name: biject_to(latent.support) for latent in self.latents}

    def draw(self, chains):
        """The state at draws of the start."""
        return self.at(self.densities.draw(chains))

    def at(self, values):
        """The state at values of the latents."""
        blocks = []
        for latent in self.latents:
            raw = self.transforms[latent.name].inv(values[latent.name])
            units = (raw.shape[0], 1, -1) if self.joint else (*raw.shape[:2], -1)
            blocks.append(raw.reshape(units))
        return self.evaluate(torch.cat(blocks, -1))

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
        values, log_jacobian, first = {}, 0.0, 0
        for latent in self.latents:
            transform = self.transforms[latent.name]
            shape = transform.inverse_shape(torch.Size(latent.event_shape))
            rows = self.densities.num_rows if latent.local else 1
            size = math.prod(shape) * (rows if self.joint else 1)
            raw = u[..., first : first + size].reshape(len(u), rows, *shape)
            values[latent.name] = transform(raw)
            log_det = transform.log_abs_det_jacobian(raw, values[latent.name])
            log_jacobian = log_jacobian + log_det.reshape(*u.shape[:2], -1).sum(-1)
            first += size
        return values, log_jacobian


class Finite:
    """A path over one finite discrete latent in the plate, every value's densities in a table."""

    def __init__(self, densities):
        self.densities = densities
        (self.latent,) = densities.problem.latents
        num_values = self.latent.num_values
        support = self.latent.support
        first = getattr(support, "lower_bound", 0)
        values = first + torch.arange(num_values, device=densities.x.device)
        values = values[:, None].expand(-1, densities.num_rows)
        with torch.no_grad():
            tables = densities.log_densities({self.latent.name: values})
        self.first, (self.start, self.joint) = first, tables

    def draw(self, chains):
        """The state at draws of the start."""
        return self.at(self.densities.draw(chains))

    def at(self, values):
        """The state at values of the latent."""
        return self.evaluate(values[self.latent.name].long() - self.first)

    def evaluate(self, u):
        """The state at places in the table, u (chains, units)."""
        return State(u, self.start.gather(0, u), self.joint.gather(0, u))


def path(problem, x, guide=None, index=None):
    """The path of a problem's latents from prior or guide, Continuous or Finite.

    Raises ZooError for latents that neither suits, or a guide that has auxiliary latents.
    """
    require_suited(problem)
    densities = Densities(problem, x, guide, index)
    kind = Finite if problem.latents[0].support.is_discrete else Continuous
    return kind(densities)


def require_suited(problem):
    """Refuse latents that cannot be annealed."""
    discrete = [latent for latent in problem.latents if latent.support.is_discrete]
    for latent in discrete:
        others = len(problem.latents) > 1 or not latent.local
        require(
            latent.num_values is not None and not others,
            f"cannot anneal over discrete latent {latent.name!r} of {problem.name}: possible are "
            "continuous latents, or one finite discrete latent a datum and no other; where the "
            "truth is known problem.log_evidence(x) has it",
        )


def _no_nan(log_density):
    return torch.where(log_density.isnan(), -math.inf, log_density)

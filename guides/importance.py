"""Importance: another guide's draws, of which one is kept in proportion to its weight.

Family: q(z_n) is the distribution of z_j, where z_1 ... z_K are draws from the base guide and j is
    chosen with probability w_j / (w_1 + ... + w_K), w = p(x, z) / q_base(z given x).  Its density
    has no closed form; the one that it states, log p(x, z_j) - log mean w, makes its ELBO the
    K-draw importance-weighted bound, which is never below the base guide's.  With K to infinity it
    is the posterior.
Cannot represent: what K draws of the base guide do not reach.
Needs: continuous latents, none of them shared between data, and a base guide with an answer for new
    rows.  A step and a draw cost K draws of the base guide and K densities of the model.
Source: Cremer, Morris & Duvenaud 2017, Reinterpreting importance-weighted autoencoders, section 3;
    Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders, eq. 8.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule

import guides
import zoo
from guides.families import refuse_unsuited
from guides.inside import detached, log_joint
from guides.joined import refuse_joint
from guides.unsuited import Unsuited
from zoo.errors import ZooError, require, require_count
from zoo.problem import sample_sites

PLACE = "importance_place"


class Importance(PyroModule):
    """A Pyro guide `guide(x, index=None)`, whose base is a part of it and is trained through it.

    The gradient of its ELBO by reparametrized draws is that of the importance-weighted bound.
    """

    name = "importance"
    tabular = False

    def __init__(self, problem, base, num_draws):
        super().__init__(zoo.unique(self.name))
        self.base, self.num_draws = base, num_draws
        self.latents, self.plate = problem.latents, problem.plate
        self._hidden = (problem.model,)  # in a tuple its parameters are not the guide's

    def forward(self, x=None, index=None):
        require(x is not None, "importance weighs its draws by the data: guide(x)")
        plate = pyro.plate(self.plate, len(x), subsample=index, dim=-1)
        zero, one = x.new_zeros(()), x.new_ones(())
        with plate:
            place = pyro.sample(PLACE, dist.Uniform(zero, one), infer={"is_auxiliary": True})
        kept, log_q = self._kept(x if index is None else x[index], place)
        with plate:
            for number, latent in enumerate(self.latents):
                own = log_q if number == 0 else torch.zeros_like(log_q)
                point = dist.Delta(kept[latent.name], own, len(latent.event_shape))
                pyro.sample(latent.name, point)

    def _kept(self, x, place):
        """The draw that is kept for places (..., n) in [0, 1], and its log density (..., n).

        The places say which by the share of the weights that lies before it.
        """
        model, outer = detached(self._hidden[0]), place.shape
        values, log_base = self._draws(x, self.num_draws * math.prod(outer[:-1]))
        log_p = log_joint(model, x, values)
        log_p, log_base = (v.reshape(self.num_draws, *outer) for v in (log_p, log_base))
        log_weight = log_p - log_base
        shares = log_weight.detach().softmax(0).cumsum(0)
        chosen = (shares < place).sum(0, keepdim=True).clamp(max=self.num_draws - 1)
        mean = log_weight.logsumexp(0) - math.log(self.num_draws)
        kept = {
            latent.name: _picked(values[latent.name], chosen, latent.event_shape)
            for latent in self.latents
        }
        return kept, log_p.gather(0, chosen)[0] - mean

    def _draws(self, x, count):
        """Draws of the base guide {latent: (count, 1, n, ...)}, and their log q (count, 1, n)."""
        # Their plate is left of those of whoever calls, which are at -1 and -2.
        with poutine.block(hide_types=["sample"]):
            with pyro.plate("importance_draws", count, dim=-3):
                trace = poutine.trace(self.base).get_trace(x)
            trace.compute_log_prob()
        sites = sample_sites(trace)
        values = {site["name"]: site["value"] for site in sites}
        return values, sum(site["unscaled_log_prob"] for site in sites)


def _picked(values, chosen, event_shape):
    """Of values (draws, 1, n, *event_shape) those at places (1, ..., n) among the first axis.

    The draws stand for (num_draws, ...); returns (..., n, *event_shape).
    """
    values = values.reshape(-1, *chosen.shape[1:], *event_shape)
    place = chosen.reshape(*chosen.shape, *(1 for _ in event_shape))
    return values.gather(0, place.expand(1, *values.shape[1:]))[0]


@guides.register
def build(problem, base="amortized", base_options=None, num_draws=8):
    """The guide; base, base_options: the guide to draw from; num_draws: K."""
    require_count(num_draws=num_draws)
    refuse_joint("importance", problem)
    require(problem.latents, f"{problem.name} has no latents: take guide 'empty'")
    for latent in problem.latents:
        refuse_unsuited("importance", latent)
    options = base_options or {}
    require(
        isinstance(options, dict),
        f"base_options must be a table of the base guide's options, got {options!r}",
    )
    require(base != "importance", "importance of importance is importance with more num_draws")
    try:
        inner = guides.build(base, problem, **options)
    except Unsuited as refusal:
        raise ZooError(f"{refusal}; {_bases(problem)}") from refusal
    if not _serves(inner):
        raise ZooError(
            f"importance does not suit guide {base!r}, which has no density for new rows; "
            f"{_bases(problem)}"
        )
    return Importance(problem, inner, num_draws)


def _bases(problem):
    return f"guides that do: {', '.join(guides.suiting(problem, _serves))}"


def _serves(guide):
    """Whether a guide can be the base: it has a density for new rows."""
    plain = not isinstance(guide, Importance) and not getattr(guide, "tabular", False)
    return plain and getattr(guide, "family", None) != "delta"

"""Base of the estimators that weigh each datum by its own draws, and what they read off traces."""

import math

from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO

from zoo.problem import sample_sites

PARTICLES = "num_particles_vectorized"  # Pyro's name of the plate of draws


class PerDatum(Trace_ELBO):
    """An ELBO object whose gradient is that of `gain`, a number a datum.

    own: module of what the estimator itself learns or keeps, None where there is nothing.
    updates: {name of a buffer of `own`: its value after the step}, once `gain` has run.
    """

    own, updates, temperature = None, {}, None

    def gain(self, draws):
        """(what has the gradient of each datum's objective, (b,), in nats; a loss of `own`, ()).

        draws: Draws.  The loss reaches the parameters of `own`, and the gain does not.
        """
        raise NotImplementedError

    def particle(self, model_trace, guide_trace):
        """(loss, surrogate) summed over the draws, as `mean_losses` takes them."""
        draws = Draws(model_trace, guide_trace, self.num_particles)
        gain, own_loss = self.gain(draws)
        surrogate = draws.scale * gain.sum() + draws.shared - own_loss
        return -self.num_particles * self.bound(draws), -self.num_particles * surrogate

    def bound(self, draws):
        """The ELBO of all data, (), nats, as the draws estimate it."""
        return draws.scale * draws.log_weight.mean(0).sum() + draws.shared

    def _get_trace(self, model, guide, args, kwargs):
        x, index = (*args, None)[:2]
        self.data = x if index is None else x[index]
        return super()._get_trace(model, guide, args, kwargs)


class Draws:
    """Densities of a minibatch of b data under P draws each, in nats and without the plate's scale.

    log_p, log_q: the joint density and the guide's, (P, b); log_weight: their difference.
    score: the part of log q whose draws no path leads through; path: the rest.
    scale: data for each row of the minibatch, N / b.  shared: what stands outside the plate, ().
    """

    def __init__(self, model_trace, guide_trace, num_particles):
        self.guide_trace, self.num_particles = guide_trace, num_particles
        self.scale = math.prod(f.full_size / f.size for f in _some_frames(guide_trace))
        self.log_p, shared = self.density(model_trace)
        self.shared = shared / num_particles
        self.log_q, _ = self.density(guide_trace)
        parts = [site["score_parts"] for site in sample_sites(guide_trace)]
        zero = self.log_p.new_zeros(())
        self.score = self._by_draw(sum((p.score_function for p in parts if _scored(p)), zero))
        path = sum((p.entropy_term for p in parts if not _scored(p)), zero)
        self.path = self._by_draw(path) / self.scale

    @property
    def log_weight(self):
        return self.log_p - self.log_q

    def density(self, trace):
        """(log density of every draw of every datum, (P, b); that of what they share, ())."""
        rows, shared = 0.0, 0.0
        for site in sample_sites(trace):
            if _frames(site):
                rows = rows + site["log_prob"]
            else:
                shared = shared + site["log_prob"].sum()
        self.num_rows = rows.shape[-1]
        return self._by_draw(rows) / self.scale, shared

    def entries(self, value):
        """Values of a site, batch first, as vectors: (P, b, k)."""
        return value.reshape(self.num_particles, self.num_rows, -1)

    def _by_draw(self, value):
        return value.expand(self.num_particles, self.num_rows)


def _scored(parts):
    """Whether no path leads through a site's draws."""
    return not is_identically_zero(parts.score_function)


def _frames(site):
    """The plates that a site stands in, that of the draws left out."""
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]


def _some_frames(trace):
    """The plates of the first site that stands in any."""
    return next((found for site in sample_sites(trace) if (found := _frames(site))), [])

"""Base of the estimators that weigh each datum by its own draws, and what they read off traces."""

from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO

from experiments.svi.importance import by_datum
from zoo.problem import sample_sites


class PerDatum(Trace_ELBO):
    """An ELBO object whose gradient is that of `gain`, a number a datum.

    own: module of what the estimator itself learns or keeps, None where there is nothing.
    updates: {name of a buffer of `own`: its value after the step}, once `gain` has run.
    plate: name of the plate of the data.
    """

    own, updates, temperature, plate = None, {}, None, None

    def gain(self, draws):
        """(what has the gradient of each datum's objective, (b,), in nats; a loss of `own`, ()).

        draws: Draws.  The loss reaches the parameters of `own`, and the gain does not.
        """
        raise NotImplementedError

    def particle(self, model_trace, guide_trace):
        """(loss, surrogate) summed over the draws, as `mean_losses` takes them."""
        draws = Draws(model_trace, guide_trace, self.plate, self.num_particles)
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

    def __init__(self, model_trace, guide_trace, plate, num_particles):
        self.guide_trace, self.plate, self.num_particles = guide_trace, plate, num_particles
        self.log_p, self.scale, self.shared = self.density(model_trace)
        self.log_q, _, _ = self.density(guide_trace)
        parts = [site["score_parts"] for site in sample_sites(guide_trace)]
        zero = self.log_p.new_zeros(())
        self.score = self._by_draw(sum((p.score_function for p in parts if _scored(p)), zero))
        path = sum((p.entropy_term for p in parts if not _scored(p)), zero)
        self.path = self._by_draw(path) / self.scale

    @property
    def log_weight(self):
        return self.log_p - self.log_q

    def density(self, trace):
        """(log density of every draw and datum, (P, b); N / b; that of what they share, ())."""
        return by_datum(trace, self.plate, self.num_particles)

    def entries(self, value):
        """Values of a site, batch first, as vectors: (P, b, k)."""
        return value.reshape(*self.log_p.shape, -1)

    def _by_draw(self, value):
        return value.expand(self.log_p.shape)


def _scored(parts):
    """Whether no path leads through a site's draws."""
    return not is_identically_zero(parts.score_function)

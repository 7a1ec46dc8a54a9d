"""The three models and two guides as NumPyro programs, from their mathematics.

A program takes (x, index, rows): all data (n, d), the batch's indices (b,), and the batch's rows
of a table where the caller gathers them itself, else None.  Parameters have the zoo's names.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from zoo.gaussian_lvm import MIN_SCALE

TABLE = "guide.sources.z.rows.weight"


def programs(case):
    """(model, guide) of a case."""
    values = {name: jnp.asarray(tensor.numpy(force=True)) for name, tensor in case.start.items()}
    rows_of = _table(values) if case.guide == "mean_field" else _encoder(case, values)
    if case.discrete:
        return _mixture(case, values, rows_of), lambda x, index, rows=None: None
    likelihood = {"vae": _vae, "gaussian_lvm": _gaussian}[case.model](case, values)

    def model(x, index, rows=None):
        with _batch(case):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(case.latent_dim), 1).to_event(1))
            numpyro.sample("x", likelihood(z), obs=x[index])

    def guide(x, index, rows=None):
        loc, log_scale = jnp.split(rows_of(x, index, rows), 2, -1)
        with _batch(case):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


class _batch:
    """The plate of a batch, its densities scaled to all data."""

    def __init__(self, case):
        self.parts = (handlers.scale(scale=case.scale), numpyro.plate("datum", case.batch_size))

    def __enter__(self):
        for part in self.parts:
            part.__enter__()

    def __exit__(self, *error):
        for part in reversed(self.parts):
            part.__exit__(*error)


def _param(values, name):
    return numpyro.param(name, values[name])


def _table(values):
    """The rows of a table; the caller's own where it gathered them."""
    return lambda x, index, rows: _param(values, TABLE)[index] if rows is None else rows


def _encoder(case, values):
    """The rows by a network on centered data, divided by one scale."""
    x = jnp.asarray(case.data.numpy(force=True))
    center = x.mean(0)
    spread = jnp.sqrt(jnp.square(x - center).mean())

    def rows_of(x, index, rows):
        centered = (x[index] - center) / spread
        return _network(values, "guide.sources.z.network", len(case.encoder_hidden), centered)

    return rows_of


def _network(values, prefix, num_hidden, h):
    """A perceptron with hyperbolic tangents; weights are (out, in) as torch keeps them."""
    for i in range(num_hidden + 1):
        h = h @ _param(values, f"{prefix}.{2 * i}.weight").T
        h = h + _param(values, f"{prefix}.{2 * i}.bias")
        h = jnp.tanh(h) if i < num_hidden else h
    return h


def _vae(case, values):
    def likelihood(z):
        logits = _network(values, "model.decoder", len(case.hidden), z)
        return dist.Bernoulli(logits=logits).to_event(1)

    return likelihood


def _gaussian(case, values):
    def likelihood(z):
        weight, loc = _param(values, "model.weight"), _param(values, "model.loc")
        scale = MIN_SCALE + jnp.exp(_param(values, "model.log_scale"))
        return dist.Normal(z @ weight.T + loc, scale).to_event(1)

    return likelihood


def _mixture(case, values, rows_of):
    """The exact sum over components as one factor; the guide is empty.

    log p(x | k) = x . logits_k - sum softplus(logits_k), a product of matrices.
    """

    def model(x, index, rows=None):
        logits, weights = _param(values, "model.logits"), _param(values, "model.weight_logits")
        log_q = jax.nn.log_softmax(rows_of(x, index, rows))
        log_p = x[index] @ logits.T - jax.nn.softplus(logits).sum(-1) + jax.nn.log_softmax(weights)
        with _batch(case):
            numpyro.factor("bound", (jnp.exp(log_q) * (log_p - log_q)).sum(-1))

    return model

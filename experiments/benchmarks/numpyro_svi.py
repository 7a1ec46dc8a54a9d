"""NumPyro: `svi.update` under jit, `lax.scan` over steps, and row-wise moments by hand.

Data and indices are on the device.  For several seeds every variant is one vmap, each seed with
its own state, key and batches.
"""

import jax
import jax.numpy as jnp
import numpyro
from jax import lax
from numpyro.infer import SVI, Trace_ELBO

from experiments.benchmarks.cases import Absent, Batches
from experiments.benchmarks.numpyro_models import TABLE, programs

BETAS, EPSILON = (0.9, 0.999), 1e-8


def prepare(case, variant):
    """steps(n) of the case; variant: "jit", "scan" or "rows", a scan with row-wise moments."""
    _require_device(case)
    if variant == "rows" and case.guide != "mean_field":
        raise Absent("there is no table of rows")
    data = jnp.asarray(case.data.numpy(force=True))
    begin, update = (_row_wise if variant == "rows" else _dense)(case)
    ring = _ring(case)
    state = begin(jax.random.split(jax.random.key(case.seed), case.seeds), data, ring[0])
    batches = Batches(list(ring) if variant == "jit" else ring)  # no slicing at every step
    advance = _scan(update) if variant != "jit" else jax.jit(update, donate_argnums=0)

    def steps(n):
        nonlocal state
        if variant == "jit":
            for index in batches.take(n):
                state, value = advance(state, data, index)
        else:
            state, value = advance(state, data, batches.take(n))
        return float(value.mean())

    return steps


def _scan(update):
    """advance(state, data, indices (n, ...)): n steps in one program."""

    def advance(state, data, indices):
        state, losses = lax.scan(lambda s, index: update(s, data, index), state, indices)
        return state, losses[-1]

    return jax.jit(advance, donate_argnums=0)


def _dense(case):
    """(begin, update) of `SVI` as it is: Adam over every parameter."""
    model, guide = programs(case)
    svi = SVI(model, guide, numpyro.optim.Adam(case.learning_rate), Trace_ELBO())

    def update(state, data, index):
        return svi.update(state, data, index)

    return _of_seeds(case, svi.init, update)


def _row_wise(case):
    """(begin, update): the rows are gathered, so that a step costs O(batch).

    The table and its moments are not parameters of NumPyro's, but arrays beside them.
    """
    model, guide = programs(case)
    elbo, adam = Trace_ELBO(), numpyro.optim.Adam(case.learning_rate)
    table = jnp.asarray(case.start[TABLE].numpy(force=True))
    svi = SVI(model, guide, adam, elbo)

    def begin(key, data, index):
        # With rows given no program asks for the table, so that SVI finds the other parameters.
        state = svi.init(key, data, index, table[index])
        moments = (jnp.copy(table), jnp.zeros_like(table), jnp.zeros_like(table))
        return state.rng_key, state.optim_state, moments, jnp.zeros((), jnp.int32)

    def update(state, data, index):
        key, optim_state, (rows, first, second), step = state
        key, now = jax.random.split(key)

        def loss(parameters, batch_rows):
            return elbo.loss(now, parameters, model, guide, data, index, batch_rows)

        value, (gradients, row_gradient) = jax.value_and_grad(loss, (0, 1))(
            adam.get_params(optim_state), rows[index]
        )
        step = step + 1
        moments = _adam_rows((rows, first, second), index, row_gradient, step, case.learning_rate)
        return (key, adam.update(gradients, optim_state), moments, step), value

    return _of_seeds(case, begin, update)


def _adam_rows(state, index, gradient, step, rate):
    """Adam on the rows at `index` alone, which holds none twice."""
    rows, first, second = state
    m = BETAS[0] * first[index] + (1 - BETAS[0]) * gradient
    v = BETAS[1] * second[index] + (1 - BETAS[1]) * gradient**2
    m_hat, v_hat = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
    change = rate * m_hat / (jnp.sqrt(v_hat) + EPSILON)

    def put(array, values):
        return array.at[index].set(values, unique_indices=True)

    return put(rows, rows[index] - change), put(first, m), put(second, v)


def _of_seeds(case, begin, update):
    """The two functions for one key, or under vmap for as many as the case has seeds."""
    if case.seeds == 1:
        return lambda keys, data, index: begin(keys[0], data, index), update
    return jax.vmap(begin, (0, None, 0)), jax.vmap(update, (0, None, 0))


def _ring(case):
    """Batches (RING, b), or (RING, seeds, b) with a place of its own in the ring for each."""
    ring = jnp.asarray(case.ring.numpy(force=True), jnp.int32)
    if case.seeds == 1:
        return ring
    return jnp.stack([jnp.roll(ring, -7 * seed, 0) for seed in range(case.seeds)], 1)


def _require_device(case):
    """Raise Absent where JAX does not see what the case runs on."""
    if case.device != "cpu" and jax.default_backend() != "gpu":
        raise Absent("jax sees no GPU here; its CUDA build is an install of its own")

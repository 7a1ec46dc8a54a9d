"""Pyro as users run it: `SVI`, `Trace_ELBO` and `pyro.optim.Adam`."""

import pyro
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate

from experiments.benchmarks.cases import Batches


def prepare(case, validate=True, elbo=None):
    """steps(n) of the case; validate: Pyro's checks at every step, on unless one turns them off.

    elbo: in place of Pyro's own.

    The mixture's latent is summed over by TraceEnum_ELBO, as the zoo's own fits do.
    """
    pair = case.build()
    modules, data = case.modules(pair), case.data
    guide = modules["guide"]
    if case.discrete:
        guide = config_enumerate(guide, "parallel")
    elbo = elbo or (TraceEnum_ELBO(max_plate_nesting=1) if case.discrete else Trace_ELBO())
    adam = pyro.optim.Adam({"lr": case.learning_rate})
    svi, batches = SVI(modules["model"], guide, adam, elbo), Batches(case.ring)

    def steps(n):
        with pyro.validation_enabled(validate):
            for index in batches.take(n):
                value = svi.step(data, index)
        return float(value)

    return steps

"""How well a model foretells data: the negative log likelihood, and what a draw costs.

It puts models of any kind into one table, with latents or without, and needs nothing but log p(x):
exact where the problem knows it, else by importance weighting, whose estimate of the negative log
likelihood is too high on average.
Source: Theis, van den Oord & Bethge 2016, A note on the evaluation of generative models, section 3.
"""

import time

import pyro
import torch

from experiments.measure.evidence import iwae
from experiments.measure.gaps import summary
from experiments.measure.streams import stream
from experiments.svi import device as devices

DRAWN = 100  # rows that are drawn for the time that it takes


def density(problem, guide, x, num_draws):
    """Negative log likelihood of the rows x (n, d), nats a datum, and seconds for 100 new rows.

    guide: with an answer for x.  num_draws: of the bound, for a datum, where one is needed.
    """
    exact = problem.truth.log_evidence is not None
    found = problem.log_evidence(x) if exact else iwae(problem, guide, x, num_draws).value
    return summary({"nll": -found.double()}) | {
        "nll_by": "exact" if exact else "importance",
        "seconds_for_100_draws": _seconds_of_draws(problem, x.device),
        "parameters": problem.num_parameters,
    }


@torch.no_grad()
def _seconds_of_draws(problem, device):
    """Seconds to draw 100 rows from the model, all at once."""
    with stream(0, device), pyro.plate("draws", DRAWN, dim=-2):
        problem.model()  # the first draw of a process takes longer than any other
        devices.wait_for(device)
        started = time.perf_counter()
        problem.model()
        devices.wait_for(device)
        return time.perf_counter() - started

"""Data simulated from a problem's model, together with the latents that made them."""

import torch
from pyro import poutine

from experiments.measure.frozen import Frozen
from experiments.measure.streams import stream
from zoo.errors import explained, require
from zoo.problem import sample_sites


def simulate(problem, like, seed=0):
    """Latents, log p(x, z) and rows x from the model, one of each for every row of `like` (n, d).

    Returns ({name: (n, ...), without n outside the plate}, (n,) float64 nats, or () for a joint
    problem, and (n, d)).  Entries that the model does not observe, such as covariates, stay as
    they are in `like`.
    Raises ZooError where the likelihood observes anything else than entries of the rows.
    """
    model, x = Frozen(problem.model), like.clone()
    with stream(seed, like.device), torch.no_grad():
        cells = _observed_cells(problem, model, like)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(like)
        trace.compute_log_prob()
    for name, places in cells.items():
        x.view(-1)[places] = trace.nodes[name]["value"].to(x).reshape(-1)
    latents = {latent.name: trace.nodes[latent.name]["value"] for latent in problem.latents}
    terms = [found["unscaled_log_prob"].double() for found in sample_sites(trace)]
    return latents, sum(term.sum() if problem.joint else term for term in terms), x


def training_rows(problem, count):
    """`count` training rows, over and over where there are fewer."""
    rows = problem.data.train
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def _observed_cells(problem, model, x):
    """Which entries of x.flatten() every likelihood site observes, found by numbering them.

    Rows and columns are numbered apart, so that the numbers are exact in the rows' own type.
    """
    wrong = f"{problem.name} cannot be simulated: its likelihood must observe entries of the rows"
    lines = torch.arange(len(x), device=x.device).to(x.dtype)[:, None].expand(x.shape)
    columns = torch.arange(x.shape[1], device=x.device).to(x.dtype).expand(x.shape)
    with explained(wrong):
        line, column = (_observed(model, numbers.contiguous()) for numbers in (lines, columns))
    cells = {name: x.shape[1] * line[name] + column[name] for name in line}
    every = torch.cat(list(cells.values()))
    good = (every == every.long()).all() and every.unique().numel() == every.numel()
    require(good and every.min() >= 0 and every.max() < x.numel(), wrong)
    return {name: cell.long() for name, cell in cells.items()}


def _observed(model, x):
    """{site: its observed values, flat, in float64}."""
    sites = sample_sites(poutine.trace(model).get_trace(x))
    return {s["name"]: s["value"].reshape(-1).double() for s in sites if s["is_observed"]}

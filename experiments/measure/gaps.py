"""How far a guide is from the truth, and why.

log p(x) - ELBO = [log p(x) - best ELBO of the family]  approximation gap
                + [best ELBO of the family - ELBO]      amortization gap
Where log p(x) is known as an interval only, so are the gaps that need it.
Source: Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders, eq. 5-6.
"""

import math

import torch

from experiments.measure.elbo import log_weights
from experiments.measure.rows import fit_joint, fit_rows


def gaps(problem, guide, x, best, num_draws=100, interval=None):
    """Means of `gap_values` as {measure_per_datum: value, measure_per_datum_se: standard error}.

    The errors are over data, for a joint problem over draws.
    """
    return summary(gap_values(problem, guide, x, best, num_draws, interval))


def gap_values(problem, guide, x, best, num_draws=100, interval=None):
    """The bound, the evidence where it is known, and the gaps, as nats a datum: {measure: (n,)}.

    guide: fitted, with an answer for every row of x (n, d).  best: a guide with the best member
    of the same family, None where that is not known.  interval: (lower, upper), each (n,) nats,
    for an evidence that is not known exactly; (1,) each for a joint problem, whose values are one
    a draw, divided by n.  Gaps that need the evidence are left out where nothing is known of it.
    """
    own = _bounds(problem, guide, x, num_draws)
    found, top = {"elbo": own}, own if best is guide else None
    if best is not None:
        top = _bounds(problem, best, x, num_draws) if top is None else top
        found["amortization_gap"] = top - own
    if problem.truth.log_evidence is not None:
        interval, ends = [problem.log_evidence(x)], [""]
    elif interval is not None:
        ends = ["_lower", "_upper"]
    for end, evidence in zip(ends, interval, strict=True) if interval else ():
        evidence = evidence.double() / (len(x) if problem.joint else 1)
        found |= {
            f"log_evidence{end}": evidence.expand_as(own),
            f"total_gap{end}": evidence - own,
        }
        if best is not None:
            found[f"approximation_gap{end}"] = evidence - top
    return found


def summary(per_datum):
    """{name_per_datum: mean, name_per_datum_se: its standard error over data} of (n,) values."""
    found = {}
    for name, values in per_datum.items():
        found[f"{name}_per_datum"] = values.mean().item()
        spread = values.std().item() if len(values) > 1 else math.nan
        found[f"{name}_per_datum_se"] = spread / math.sqrt(len(values))
    return found


def own_and_best(problem, guide, x, restarts=0, search=True):
    """(own, best): a guide with its own answer for the rows x, and the RowFit of its family's best.

    The best is None for a guide that has no rows of parameters, such as one whose latents hang on
    each other, and where search is False, unless the guide's own answer needs the search.

    A table has no answer for new data, so its own is its best.  An encoder's rows are where the
    first search for the best starts; restarts start elsewhere.  For a joint problem, whose shared
    latents belong to the rows that it was fitted to, x must be those rows.
    """
    if problem.joint:
        found = fit_joint(problem, guide, x, restarts) if getattr(guide, "free", True) else None
        return guide, found
    if not (hasattr(guide, "rows") and (search or guide.tabular)):
        return guide, None
    if guide.tabular:
        fitted = fit_rows(problem, guide, x, restarts=restarts)
        return fitted.guide, fitted
    with torch.no_grad():
        start = guide.rows(x)
    return guide, fit_rows(problem, guide, x, start, restarts)


def _bounds(problem, guide, x, num_draws):
    """Replicates of the bound a datum, float64: (n,) means over draws, or a joint problem's draws.

    Their mean is the bound, and their spread its error.
    """
    weights = log_weights(problem, guide, x, num_draws).double()
    return weights[:, 0] / len(x) if problem.joint else weights.mean(0)

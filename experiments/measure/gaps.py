"""How far a guide is from the truth, and why.

log p(x) - ELBO = [log p(x) - best ELBO of the family]  approximation gap
                + [best ELBO of the family - ELBO]      amortization gap
Source: Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders, eq. 5-6.
"""

import math

import torch

from experiments.measure.elbo import draw
from experiments.measure.rows import fit_rows


def gaps(problem, guide, x, best, num_draws=100):
    """The bound, the evidence where it is known, and the gaps, as nats a datum.

    guide: fitted, with an answer for every row of x (n, d).  best: a guide with the best row of
    the same family for each.  Returns {measure: value, measure_se: value}; the standard errors
    are over data.  Gaps that need the evidence are left out where it is not known.
    """
    own = _bounds(problem, guide, x, num_draws)
    top = own if best is guide else _bounds(problem, best, x, num_draws)
    found = {"elbo": own, "amortization_gap": top - own}
    if problem.truth.log_evidence is not None:
        evidence = problem.log_evidence(x).double()
        found |= {
            "log_evidence": evidence,
            "total_gap": evidence - own,
            "approximation_gap": evidence - top,
        }
    return summary(found)


def summary(per_datum):
    """{name_per_datum: mean, name_per_datum_se: its standard error over data} of (n,) values."""
    found = {}
    for name, values in per_datum.items():
        found[f"{name}_per_datum"] = values.mean().item()
        found[f"{name}_per_datum_se"] = values.std().item() / math.sqrt(len(values))
    return found


def own_and_best(problem, guide, x):
    """(own, best): RowFits of the guide's own answer for new data and of its family's best.

    A table has no answer for new data, so its own is its best.  An encoder's rows are where the
    search for the best starts.
    """
    if guide.tabular:
        fitted = fit_rows(problem, guide, x)
        return fitted.guide, fitted
    with torch.no_grad():
        start = guide.rows(x)
    return guide, fit_rows(problem, guide, x, start)


def _bounds(problem, guide, x, num_draws):
    """Each datum's bound from the mean over draws: (n,) float64."""
    return draw(problem.model, guide, x, num_draws).log_weight.double().mean(0)

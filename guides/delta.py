"""Delta: one point for every latent, the maximum of the joint density.

Family: q(z) = delta(z - point), a point for each global latent and for each datum's latents.
Cannot represent: uncertainty.  It has no log q, so that it bounds no evidence: a fit's history is
    log p(x, z) at the points, and every measure that needs log q refuses it.
Needs: continuous latents.  The density is that of the latents in their own, constrained space, as
    they stand in the model: another parametrization has another maximum, or none at all where the
    density is unbounded, as in a centered hierarchy whose spread goes to zero.
Source: Gelman et al. 2013, Bayesian data analysis, section 13.1.
"""

import guides
from guides.families import Delta
from guides.guide import Guide
from guides.sources import by_table


@guides.register
def build(problem):
    """The guide, with one point for each training row of the problem."""
    return Guide("delta", problem, by_table(problem), Delta)

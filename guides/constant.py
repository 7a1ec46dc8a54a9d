"""Constant: all data share one q, whatever their values.

Family: q(z) = prod_n q(z_n; row), by default a diagonal normal for a continuous latent and a
    categorical for a discrete one; a latent outside the plate has a row of its own.
Cannot represent: that data differ; what it loses against mean_field is the price of ignoring the
    data, and the lower anchor of every comparison of guides.
Needs: latents in one plate or in none.  New data cost nothing.
Source: Margossian & Blei 2024, Amortized variational inference: when and why?, section 4.
"""

import guides
from guides.guide import Guide
from guides.sources import Shared


@guides.register
def build(problem, family="auto"):
    """The guide; family: of every latent."""
    return Guide("constant", problem, lambda _, q: Shared(q.initial_row), family)

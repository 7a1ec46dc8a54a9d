"""Mean field: every datum has its own free parameters.

Family: q(z) = prod_n q(z_n; row_n), by default a diagonal normal for a continuous latent, a
    categorical for a discrete one, and independent entries for a vector of whole numbers.
Cannot represent: dependence between data or, within one datum, what the family cannot.
Needs: latents in one plate or in none.  New data need new rows, fitted with the model frozen.
Source: Blei, Kucukelbir & McAuliffe 2017, Variational inference: a review for statisticians;
    Hoffman et al. 2013, Stochastic variational inference.
"""

import guides
from guides.guide import Guide
from guides.sources import by_table


@guides.register
def build(problem, family="auto"):
    """The guide, with one row for each training row of the problem."""
    return Guide("mean_field", problem, by_table(problem), family)

"""Full rank: one normal over all latents together, with every correlation.

Family: q(z) = Normal(loc, L L') in unconstrained space.  Where the data are independent, each has
    a normal of its own over its latents; where they share a latent, one normal stands over the
    shared latents and those of all data.
Cannot represent: skewness or several modes of the unconstrained posterior.
Needs: continuous latents, and for shared latents at most 2,000 numbers in all, since L has half
    the square of that.  New data need new rows; a normal over all data cannot take other data.
Source: Kucukelbir et al. 2017, Automatic differentiation variational inference, section 2.4.
"""

import guides
from guides.guide import Guide
from guides.joined import joined
from guides.sources import by_table

MAX_SIZE = 2000


@guides.register
def build(problem):
    """The guide, for the training rows of the problem."""
    vector = joined("full_rank", problem, MAX_SIZE)
    return Guide("full_rank", problem, by_table(problem), "full_rank", vector)

"""Low rank: one normal over all latents together, with correlations by a few factors.

Family: q(z) = Normal(loc, W W' + diag(scale)^2) in unconstrained space, W of `rank` columns.  Where
    the data are independent, each has a normal of its own over its latents; where they share a
    latent, one normal stands over the shared latents and those of all data.
Cannot represent: skewness or several modes of the unconstrained posterior, or a covariance that
    takes more factors.  With a rank of the number of latents it is as rich as `full_rank`.
Needs: continuous latents.  A row has (2 + rank) numbers a latent, where that of `full_rank` has
    half of its square.  New data need new rows; a normal over all data cannot take other data.
Source: Ong, Nott & Smith 2018, Gaussian variational approximation with a factor covariance
    structure, eq. 4.
"""

import math
from functools import partial

import guides
from guides.families import LowRank, unconstrained
from guides.guide import Guide
from guides.joined import joined
from guides.sources import by_table
from zoo.errors import require, require_count


@guides.register
def build(problem, rank=1):
    """The guide, for the training rows of the problem; rank: how many factors."""
    require_count(rank=rank)
    vector = joined("low_rank", problem)
    for latent in (vector.latent,) if vector else problem.latents:
        size = math.prod(unconstrained(latent)[1])
        require(rank <= size, f"rank must be at most {size:,}, the numbers of q, got {rank:,}")
    family = partial(LowRank, rank=rank)
    return Guide("low_rank", problem, by_table(problem), family, vector)

"""Amortized full rank: an encoder computes every datum's normal with all its correlations.

Family: q(z) = prod_n Normal(z_n; encoder(x_n)) in unconstrained space, with full covariance over
    all the latents of a datum together.
Cannot represent: skewness or several modes of the unconstrained posterior, or parameters that the
    encoder does not compute.
Needs: continuous latents, none of them shared between data.  New data cost one pass.
Source: Kingma & Welling 2019, An introduction to variational autoencoders, section 2.5.1.
"""

import guides
from guides.guide import Guide
from guides.joined import joined, refuse_joint
from guides.sources import by_encoder


@guides.register
def build(problem, hidden=(100, 100)):
    """The guide; hidden: widths of the encoder's layers, () for a linear encoder."""
    refuse_joint("amortized_full_rank", problem)
    encoder, vector = by_encoder(problem, hidden), joined("amortized_full_rank", problem)
    return Guide("amortized_full_rank", problem, encoder, "full_rank", vector)

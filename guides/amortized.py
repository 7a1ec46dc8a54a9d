"""Amortized: an encoder computes every datum's parameters from the datum.

Family: q(z) = prod_n q(z_n; encoder(x_n)), by default a diagonal normal for a continuous latent
    and a categorical for a discrete one.
Cannot represent: what the family cannot, or parameters that the encoder does not compute; the
    loss from the latter is the amortization gap.
Needs: latents in one plate or in none.  New data cost one pass of the encoder.
Source: Kingma & Welling 2014, Auto-encoding variational Bayes;
    Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders.
"""

import guides
from guides.guide import Guide
from guides.sources import by_encoder


@guides.register
def build(problem, family="auto", hidden=(100, 100)):
    """The guide; hidden: widths of the encoder's layers, () for a linear encoder."""
    return Guide("amortized", problem, by_encoder(problem, hidden), family)

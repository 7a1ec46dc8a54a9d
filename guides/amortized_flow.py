"""Amortized flow: an encoder computes where a datum's flow stands and how it bends.

Family: that of `flow`: q(z_n) is the distribution of loc_n + scale_n g(u; c_n), u ~ Normal(0, I),
    where (loc_n, scale_n, c_n) = encoder(x_n) and g is an autoregressive map.
Cannot represent: what `flow` cannot, or rows that the encoder does not compute.
Needs: continuous latents, none of them shared between data, and at least two numbers unless it is
    a spline.  New data cost one pass of the encoder; a draw one pass of each map.
Source: Rezende & Mohamed 2015, Variational inference with normalizing flows, section 4; Kingma,
    Salimans et al. 2016, Improved variational inference with inverse autoregressive flow, section
    3.
"""

from functools import partial

import guides
from guides.flow import Flow
from guides.guide import Guide
from guides.joined import joined, refuse_joint
from guides.sources import by_encoder


@guides.register
def build(problem, hidden=(100, 100), kind="spline", transforms=2, flow_hidden=(64, 64), context=8):
    """The guide; hidden: widths of the encoder's layers, () for a linear one.

    kind, transforms, flow_hidden, context: of the flow, as `guides.flow.Flow` takes them.
    """
    refuse_joint("amortized_flow", problem)
    family = partial(Flow, kind=kind, transforms=transforms, hidden=flow_hidden, context=context)
    encoder, vector = by_encoder(problem, hidden), joined("amortized_flow", problem)
    return Guide("amortized_flow", problem, encoder, family, vector)

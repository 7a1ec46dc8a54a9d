"""Flow: a normalizing flow whose shape every datum bends by numbers of its own.

Family: q(z) is the distribution of loc_n + scale_n g(u; c_n), u ~ Normal(0, I), over all the
    latents of a datum together, in unconstrained space.  g is autoregressive, an invertible map of
    one number given those before it: kind "iaf" a shift and a scale, "maf" the inverse of such a
    map, "spline" first an "iaf" and then monotone rational-quadratic splines.  The networks that
    bend g are shared by all data; loc, scale and the context c are a datum's own.
Cannot represent: modes that lie apart, or tails other than a normal's.
Needs: continuous latents; at least two numbers unless it is a spline, since of one an affine flow
    is a normal; for shared latents at most 100 numbers in all.  A draw takes one pass of each map,
    the density of a value from elsewhere as many as there are numbers; the other way round for
    "maf".  New data need new rows.
Source: Kingma, Salimans et al. 2016, Improved variational inference with inverse autoregressive
    flow, eq. 10; Papamakarios, Pavlakou & Murray 2017, Masked autoregressive flow for density
    estimation, eq. 3-4; Durkan, Bekasov, Murray & Papamakarios 2019, Neural spline flows, section
    3.1; the maps are zuko's, the distribution that of pyro.contrib.zuko.
"""

import math
from functools import partial

import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import nn
from torch.distributions.transforms import AffineTransform
from zuko.distributions import DiagNormal, NormalizingFlow
from zuko.flows import MaskedAutoregressiveTransform
from zuko.transforms import ComposedTransform, MonotonicRQSTransform

import guides
from guides.families import from_vector, refuse_unsuited, unconstrained
from guides.guide import Guide
from guides.joined import joined
from guides.sources import by_table
from guides.unsuited import require_suited
from zoo.errors import require, require_count
from zoo.nets import check_hidden

KINDS = ("spline", "iaf", "maf")
BINS = 8  # of a spline, whose two outer knots are at -5 and 5
MAX_SIZE = 100


class Flow(nn.Module):
    """The family; a row is (loc, log scale, context) in unconstrained space.

    kind: "spline", "iaf" or "maf"; transforms: how many maps follow one another; hidden: widths
    of the layers of each map's network; context: how many numbers c has.
    """

    def __init__(self, latent, kind="spline", transforms=2, hidden=(64, 64), context=8):
        super().__init__()
        refuse_unsuited("flow", latent)
        check_shape(kind, transforms, hidden, context)
        self.latent, self.kind, self.context = latent, kind, context
        self.size = math.prod(unconstrained(latent)[1])
        require_suited(
            self.size > 1 or kind == "spline",
            f"flow of kind {kind!r} does not suit latent {latent.name!r}: an affine flow of one "
            "number is a normal; kind 'spline' does",
        )
        self.num_parameters = 2 * self.size + context
        # The first of several maps is affine: a spline bends the middle only.
        bent = [
            kind == "spline" and (i > 0 or 1 in (self.size, transforms)) for i in range(transforms)
        ]
        self.maps = nn.ModuleList(self._map(i, tuple(hidden), own) for i, own in enumerate(bent))

    def initial_row(self, *batch):
        """A small random loc and context, unit scale: (*batch, num_parameters)."""
        loc, context = (0.1 * torch.randn(*batch, count) for count in (self.size, self.context))
        return torch.cat([loc, torch.zeros_like(loc), context], -1)

    def forward(self, rows):
        """The distribution of each row: rows (..., num_parameters), batch (...)."""
        loc, log_scale, context = rows.split([self.size, self.size, self.context], -1)
        place = AffineTransform(loc, log_scale.exp(), event_dim=1)
        maps = [one(context) for one in self.maps]
        maps = [one.inv for one in maps] if self.kind == "maf" else maps
        from_noise = [*maps, place, *from_vector(self.latent)]
        # zuko's flows run from values to noise, so that this one's draws take a single pass.
        to_noise = ComposedTransform(*(one.inv for one in reversed(from_noise)))
        base = DiagNormal(torch.zeros_like(loc), torch.ones_like(loc))
        return FlowDistribution(NormalizingFlow(to_noise, base), self.latent)

    def _map(self, number, hidden, bent):
        """One autoregressive map, a spline or affine, its order the reverse of that before it."""
        order = torch.arange(self.size)
        order, univariate = order.flip(0) if number % 2 else order, {}
        if bent:
            shapes = [(BINS,), (BINS,), (BINS - 1,)]
            univariate = {"univariate": MonotonicRQSTransform, "shapes": shapes}
        found = MaskedAutoregressiveTransform(
            self.size, self.context, order=order, hidden_features=hidden, **univariate
        )
        _start_at_identity(found.hyper[-1])
        return found


def _start_at_identity(last):
    """Let a map's last layer begin, and begin anew, at 0, where the map leaves all as it is."""
    last.reset_parameters = partial(_zero, last)
    last.reset_parameters()


def _zero(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class FlowDistribution(ZukoToPyro):
    """A flow as Pyro takes it, which knows the shape and support of its latent."""

    def __init__(self, dist, latent):
        super().__init__(dist)
        self.latent = latent

    @property
    def support(self):
        """That of the latent."""
        return self.latent.support

    @property
    def event_shape(self):
        """That of the latent."""
        return torch.Size(self.latent.event_shape)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        return type(self)(self.dist.expand(torch.Size(batch_shape)), self.latent)


def check_shape(kind, transforms, hidden, context):
    """One line for options that no flow has."""
    require(kind in KINDS, f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    require_count(transforms=transforms, context=context)
    check_hidden(hidden)


@guides.register
def build(problem, kind="spline", transforms=2, hidden=(64, 64), context=8):
    """The guide, for the training rows of the problem; options: those of `Flow`."""
    family = partial(Flow, kind=kind, transforms=transforms, hidden=hidden, context=context)
    vector = joined("flow", problem, MAX_SIZE)
    return Guide("flow", problem, by_table(problem), family, vector)

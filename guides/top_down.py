"""Top down: an encoder for every latent, which sees the datum and the latents before it.

Family: q(z) = prod_n prod_l q(z_nl; encoder_l(x_n, z_n1, ..., z_n(l-1))) in the model's order, in
    which the top of a hierarchy is first; by default each a diagonal normal for a continuous latent
    and a categorical, or independent entries, for a discrete one.  Encoders see continuous latents
    in unconstrained space, a finite whole number one-hot, and vectors of whole numbers as numbers.
    With one latent it is `amortized`.
Cannot represent: what the families cannot within one latent, or parameters that an encoder does not
    compute.  Its parameters are no row a datum, since they hang on draws, so that the gap is not
    split into what the family and what the encoder loses.
Needs: latents in one plate or in none; those outside it have one free row, and are not given to
    the encoders.  New data cost one pass.
Source: Soenderby, Raiko, Maaloe, Soenderby & Winther 2016, Ladder variational autoencoders, for the
    order; Webb et al. 2018, Faithful inversion of generative models, for what it can represent.
"""

import math

import pyro
from pyro.nn import PyroModule

import guides
import zoo
from guides.families import choose_each, common, unconstrained
from guides.sources import ByLatent, Encoder, Shared
from zoo.errors import require
from zoo.nets import check_hidden, one_hot


class TopDown(PyroModule):
    """A Pyro guide `guide(x, index=None)`: latents outside the plate, then those in it in order.

    Raises ZooError for a model without latents, or latents that the family does not suit.
    """

    name = "top_down"
    tabular = False
    free = False
    """No copy of it has parameters of its own for every datum."""

    def __init__(self, problem, family, hidden):
        super().__init__(zoo.unique(self.name))
        require(problem.latents, f"{problem.name} has no latents: take guide 'empty'")
        self.latents, self.plate = problem.latents, problem.plate
        self.families = choose_each(family, self.latents)
        self.family = common(self.families, family)
        local = [latent for latent in self.latents if latent.local]
        self.sources = encoders(local, self.families, problem.data.train, hidden)
        for latent in self.latents:
            if not latent.local:
                self.sources[latent.name] = Shared(self.families[latent.name].initial_row)

    def forward(self, x=None, index=None):
        for latent in self.latents:
            if not latent.local:
                q = self.families[latent.name](self.sources[latent.name](None, index))
                pyro.sample(latent.name, q)
        if any(latent.local for latent in self.latents):
            with zoo.datum(x, index, self.plate) as rows:
                sample_in_turn(self, [la for la in self.latents if la.local], rows, index)


def encoders(latents, families, rows, hidden, widths=()):
    """A source for each latent, which sees rows (n, d) and the latents before it: ByLatent.

    widths: of what it sees before the first of them.
    """
    sources = ByLatent()
    for latent in latents:
        count = families[latent.name].num_parameters
        sources[latent.name] = Encoder(rows, hidden, count, tuple(widths))
        widths = (*widths, width(latent))
    return sources


def sample_in_turn(guide, latents, rows, index, *seen):
    """Draw latents one after the other, each given the rows and what was seen before it."""
    for latent in latents:
        q = guide.families[latent.name](guide.sources[latent.name](rows, index, *seen))
        value = pyro.sample(latent.name, q)
        seen = (*seen, features(latent, value, rows.dtype))


def width(latent):
    """How many numbers later encoders see of a latent."""
    if _is_finite(latent):
        return latent.num_values
    return math.prod(latent.event_shape if latent.support.is_discrete else unconstrained(latent)[1])


def features(latent, value, dtype):
    """What later encoders see of values (..., *event_shape): (..., width(latent))."""
    if _is_finite(latent):
        return one_hot(value, latent.num_values, dtype)
    batch = value.shape[: value.dim() - len(latent.event_shape)]
    if not latent.support.is_discrete:  # a scale that is far off would be so for later encoders
        value = unconstrained(latent)[0].inv(value)
    return value.to(dtype).reshape(*batch, -1)


def _is_finite(latent):
    """Whether the latent is one whole number of finitely many, whose values are names."""
    return latent.num_values is not None and not latent.event_shape


@guides.register
def build(problem, family="auto", hidden=(100, 100)):
    """The guide; hidden: widths of the layers of every encoder, () for linear ones."""
    check_hidden(hidden)
    return TopDown(problem, family, tuple(hidden))

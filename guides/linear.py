"""Linear: an encoder that is one affine map, the smallest amortized guide.

Family: q(z) = prod_n q(z_n; A x_n + b), by default a diagonal normal for a continuous latent, a
    categorical for a discrete one, and independent entries for a vector of whole numbers.
Cannot represent: what the family cannot, or parameters that are not affine in the datum.  It leaves
    no amortization gap where they are: `gaussian_lvm`, `bernoulli_mixture`.
Needs: latents in one plate or in none.  New data cost one product with a matrix.
Source: Tipping & Bishop 1999, Probabilistic principal component analysis, eq. 7; Lucas, Tucker,
    Grosse & Norouzi 2019, Don't blame the ELBO! A linear VAE perspective on posterior collapse,
    section 3.
"""

import guides
from guides.guide import Guide
from guides.sources import by_encoder


@guides.register
def build(problem, family="auto"):
    """The guide; family: of every latent."""
    return Guide("linear", problem, by_encoder(problem, ()), family)

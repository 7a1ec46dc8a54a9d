"""Empty: the guide of a model without latents, whose bound is its log density.

Family: none; there is nothing to approximate, so that the ELBO is log p(x) and every gap is 0.
Cannot represent: any latent.
Needs: a model without latents.
Source: Murphy 2023, Probabilistic machine learning: advanced topics, section 22.1, on models whose
    likelihood is tractable.
"""

import guides
from guides.guide import Guide


@guides.register
def build(problem):
    """The guide."""
    return Guide("empty", problem, None)

"""Bernoulli latents drawn from noise: which way round a switch falls, as a function of its logit.

With u uniform and noise = log u - log(1 - u), z = logit + noise is above 0 with the switch's
probability: b = 1[z > 0] is its draw, and sigmoid(z / temperature) a relaxed one.
"""

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from zoo.distributions import BernoulliVector
from zoo.errors import require
from zoo.problem import base_distribution


class Drawn(Messenger):
    """Draws a guide's discrete latents by draw(logits), a function of the batch's logits.

    logits: {name of the site: (..., *event_shape)}, once the guide has run.
    """

    def __init__(self, draw):
        super().__init__()
        self.draw, self.logits = draw, {}

    def _pyro_sample(self, message):
        if is_discrete_latent(message):
            self.logits[message["name"]] = logits = logits_of(message)
            message["value"], message["done"] = self.draw(logits), True


def is_discrete_latent(site):
    """Whether a site draws a latent that has no values between its values."""
    return not (site_is_subsample(site) or site["is_observed"]) and site["fn"].support.is_discrete


def logits_of(site):
    """The logits of a site's independent Bernoulli variables: batch and event shape.

    Raises ZooError for any other distribution, and where rows are masked.
    """
    fn, name = site["fn"], site["name"]
    base = base_distribution(fn)
    require(
        isinstance(base, dist.Bernoulli | BernoulliVector) and site["mask"] is None,
        f"the guide draws {name!r} from a {type(base).__name__} or masks it, and this estimator "
        "takes independent Bernoulli variables: use score or enumeration",
    )
    return base.logits.expand(fn.batch_shape + fn.event_shape)


def logistic(like):
    """Standard logistic noise of a tensor's shape."""
    least = torch.finfo(like.dtype).eps  # a uniform number may be 0, whose noise is infinite
    u = torch.rand(like.shape, dtype=like.dtype, device=like.device).clamp(least, 1 - least)
    return u.log() - (-u).log1p()

"""`Joined`: several latents as one vector in unconstrained space."""

import math

import pyro
import pyro.distributions as dist
from torch.distributions import constraints

from guides.families import refuse_unsuited, unconstrained
from guides.unsuited import require_suited
from zoo.problem import Latent

NAME = "all_latents"


class Joined:
    """Where each latent stands in the vector; for a joint problem, that of all data at once.

    `latent` is the vector as a latent of its own, in the plate unless the problem is joint.
    at_most: how many numbers the family `name` takes where one vector stands for all data.
    Raises ZooError for latents that are discrete or have no density, or too many numbers.
    """

    def __init__(self, name, problem, at_most=math.inf):
        self.num_data = len(problem.data.train) if problem.joint else 1
        self.latents, self.slices, size = problem.latents, {}, 0
        for latent in problem.latents:
            refuse_unsuited(name, latent)
            count = math.prod(unconstrained(latent)[1]) * (self.num_data if latent.local else 1)
            self.slices[latent.name] = slice(size, size + count)
            size += count
        require_suited(
            size <= at_most or not problem.joint,
            f"{name} would be one distribution over the {size:,} numbers of all data together, and "
            f"takes at most {at_most:,}; take fewer data",
        )
        plates = () if problem.joint else (problem.plate,)
        self.latent = Latent(NAME, constraints.real_vector, (size,), plates)

    def sample(self, vector, local, index=None):
        """Sample the latents inside the plate (local) or outside it, at the vector's values.

        vector: (..., size); index: (b,) the data of a minibatch of a joint problem.  The density
        of a site is the Jacobian's; that of the vector is its own site's.
        """
        for latent in self.latents:
            if latent.local == local:
                value, log_slope = self._carried(latent, vector, index)
                event_dim = len(latent.event_shape)
                pyro.sample(latent.name, dist.Delta(value, -log_slope, event_dim))

    def values(self, vector):
        """({latent: value}, {latent: log slope}): what a vector (..., size) stands for.

        The slopes are those of the maps into each latent's space, in nats, one a value.
        """
        found = {latent.name: self._carried(latent, vector) for latent in self.latents}
        return tuple({name: pair[i] for name, pair in found.items()} for i in (0, 1))

    def _carried(self, latent, vector, index=None):
        """A latent's value and log slope: batch that of the vector, with the data where local."""
        part, (transform, shape) = vector[..., self.slices[latent.name]], unconstrained(latent)
        if latent.local and not self.latent.local:
            part = part.unflatten(-1, (self.num_data, *shape))
            data = part.dim() - 1 - len(shape)
            part = part if index is None else part.index_select(data, index)
            part = part.squeeze(data - 1) if data > 0 else part
        else:
            part = part.unflatten(-1, shape) if shape else part.squeeze(-1)
        value = transform(part)
        log_slope = transform.log_abs_det_jacobian(part, value)
        return value, _sum_after(value.dim() - len(latent.event_shape), log_slope)


def joined(name, problem, at_most=math.inf):
    """A `Joined` for family `name`; None for a lone latent, which a family carries by itself.

    Raises as `Joined` does.
    """
    found = Joined(name, problem, at_most)
    return found if len(problem.latents) > 1 else None


def refuse_joint(name, problem):
    """One line for a guide with an answer a datum, where data share a latent."""
    require_suited(
        not problem.joint,
        f"{name} does not suit {problem.name}, whose data share a latent: it has an answer for "
        f"every datum, and one distribution stands over all data",
    )


def _sum_after(dims, value):
    """The sum over all but the first `dims` dimensions."""
    return value.flatten(dims).sum(-1) if value.dim() > dims else value

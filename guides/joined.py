"""`Joined`: several latents as one vector in unconstrained space."""

import math

import pyro
import pyro.distributions as dist
from torch.distributions import constraints

from guides.families import choose, unconstrained
from zoo.errors import require
from zoo.problem import Latent

NAME = "all_latents"
MAX_SIZE = 2000


class Joined:
    """Where each latent stands in the vector; for a joint problem, that of all data at once.

    `latent` is the vector as a latent of its own, in the plate unless the problem is joint.
    """

    def __init__(self, problem, num_data):
        self.num_data = num_data if problem.joint else 1
        self.latents, self.slices, size = problem.latents, {}, 0
        for latent in problem.latents:
            choose("full_rank", latent)  # refuses discrete latents
            count = math.prod(unconstrained(latent)[1]) * (self.num_data if latent.local else 1)
            self.slices[latent.name] = slice(size, size + count)
            size += count
        require(
            size <= MAX_SIZE or not problem.joint,
            f"full_rank over {size:,} numbers would need a scale matrix of {size:,} x {size:,}; "
            f"it takes at most {MAX_SIZE:,}: take mean_field, or fewer data",
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
                part = vector[..., self.slices[latent.name]]
                pyro.sample(latent.name, self._point(latent, part, index))

    def _point(self, latent, part, index):
        """A Delta at the latent's value: batch that of the vector, with the data where local."""
        transform, shape = unconstrained(latent)
        if latent.local and not self.latent.local:
            part = part.unflatten(-1, (self.num_data, *shape))
            data = part.dim() - 1 - len(shape)
            part = part if index is None else part.index_select(data, index)
            part = part.squeeze(data - 1) if data > 0 else part
        else:
            part = part.unflatten(-1, shape) if shape else part.squeeze(-1)
        event_dim = len(latent.event_shape)
        value = transform(part)
        jacobian = _sum_after(value.dim() - event_dim, transform.log_abs_det_jacobian(part, value))
        return dist.Delta(value, -jacobian, event_dim)


def _sum_after(dims, value):
    """The sum over all but the first `dims` dimensions."""
    return value.flatten(dims).sum(-1) if value.dim() > dims else value

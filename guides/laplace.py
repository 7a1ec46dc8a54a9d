"""Laplace: the normal whose mode and curvature are those of the posterior's density.

Family: q(z) = Normal(z; mode(x), (-H)^-1) in unconstrained space, H the second derivative of
    log p(x, z) at the mode, over all the latents of a datum together; where data share a latent,
    one normal over those of all data.  It has no parameters: at every step the mode is found by
    Newton's method under the model as it is.
Cannot represent: skewness or several modes; it sees the density at its mode alone, and so is the
    posterior itself where that is normal, but no optimum of the bound elsewhere.
Needs: continuous latents, and a model with parameters to fit whose density has second derivatives;
    for shared latents at most 50 numbers in all.  New data cost `iterations` of Newton's method,
    each as many passes of the model as a datum has latent numbers; where it has not arrived by
    then, q stands where it is, below the mode.  Where the density is not concave the curvature's
    absolute value is taken, and at least a quarter of the prior's, so that q is at most twice as
    wide.
Differs from the source in: the model is trained by the bound at q as it stands, not by how q
    follows the model, so that the bound may fall while the model trains, as it does for the `vae`
    of `zoo compare guides`.
Source: MacKay 2003, Information theory, inference, and learning algorithms, chapter 27; Dauphin et
    al. 2014, Identifying and attacking the saddle point problem, for the steps; damping as in
    Marquardt 1963, An algorithm for least-squares estimation of nonlinear parameters.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import guides
import zoo
from guides.inside import detached, log_joint
from guides.joined import Joined
from guides.unsuited import require_suited
from zoo.errors import require, require_count

MAX_SIZE = 50
LEAST = 0.25  # share of the prior's curvature that q has at least
FLATTEST = 1e-4  # where the prior has none; that of a standard normal is 1
DAMPINGS = (4096, 512, 64, 4, 0.5, 0.03125, 0)  # times the largest curvature, added to every one
ROUNDING = 16  # times the last digit of a height: what is no difference


class Laplace(nn.Module):
    """A Pyro guide `guide(x, index=None)`; copied with the model, the copy follows that copy."""

    name = "laplace"
    tabular = False

    def __init__(self, problem, iterations=10):
        super().__init__()
        self.joined = Joined("laplace", problem, MAX_SIZE)
        self.latents, self.plate, self.joint = problem.latents, problem.plate, problem.joint
        self.iterations, self.size = iterations, self.joined.latent.event_shape[0]
        self._hidden = (problem.model,)  # in a tuple its parameters are not the guide's

    def forward(self, x=None, index=None):
        # One normal over all data needs all of them, also for a minibatch.
        q = self.distribution(x if index is None or self.joint else x[index])
        name, infer = self.joined.latent.name, {"is_auxiliary": True}
        if self.joint:
            vector = pyro.sample(name, q, infer=infer)
            self.joined.sample(vector, False)
        with zoo.datum(x, index, self.plate):
            if not self.joint:
                vector = pyro.sample(name, q, infer=infer)
            self.joined.sample(vector, True, index)

    @torch.no_grad()
    def distribution(self, x):
        """q of all latents as one vector, MultivariateNormal: of every row of x (n, d), or of all.

        Batch (n,), or () for a joint problem; event (size,).
        """
        require(x is not None, "a Laplace approximation needs data: guide(x)")
        model = detached(self._hidden[0])

        def height(vector, prior=False):
            return self.log_density(model, x, vector, prior)

        batch = () if self.joint else (len(x),)
        mode = self._climbed(height, x.new_zeros(*batch, self.size))
        values, axes = torch.linalg.eigh(-_second(height, mode)[1])
        before = -_second(lambda v: height(v, prior=True), mode)[1]
        before = (axes.mT @ before @ axes).diagonal(dim1=-2, dim2=-1).abs()
        values = values.abs().maximum(LEAST * before).clamp(min=FLATTEST)
        covariance = (axes / values[..., None, :]) @ axes.mT
        return dist.MultivariateNormal(mode, covariance)

    def log_density(self, model, x, vector, prior=False):
        """log p(x, z) in unconstrained space, nats: of every datum at (n, size), or of all.

        prior: log p(z) alone.
        """
        values, slopes = self.joined.values(vector)
        log_p = log_joint(model, x, values, self.joint, prior)
        return log_p + sum(slope.sum() if self.joint else slope for slope in slopes.values())

    def _climbed(self, height, start):
        """Where Newton's method arrives from vectors (..., size).

        Shorter steps lean to the slope; the longest that is not lower than those before is taken,
        up to rounding: so what rounding says near the mode has no say.
        """
        place, top = start, height(start)
        for _ in range(self.iterations):
            beginning = place
            slope, second = _second(height, beginning)
            values, axes = torch.linalg.eigh(-second)
            values = values.abs().clamp(min=FLATTEST)
            along = (axes.mT @ slope[..., None])[..., 0]
            tries = [along / (values + damping * values.amax(-1, True)) for damping in DAMPINGS]
            for moved in tries:
                tried = beginning + (axes @ moved[..., None])[..., 0]
                found = height(tried)
                slack = ROUNDING * torch.finfo(top.dtype).eps * top.abs().clamp(min=1)
                rises = found >= top - slack
                place = torch.where(rises[..., None], tried, place)
                top = torch.where(rises, found, top)
        return place


def _second(height, place):
    """The first and second derivatives of a height at places (..., size).

    Every place has a height of its own, on which the others have no influence.
    """
    slope, pull = torch.func.vjp(torch.func.grad(lambda v: height(v).sum()), place)
    directions = torch.eye(place.shape[-1]).to(place)
    columns = torch.func.vmap(lambda one: pull(one.expand_as(place))[0])(directions)
    second = columns.movedim(0, -1)
    return slope, (second + second.mT) / 2


@guides.register
def build(problem, iterations=10):
    """The guide, for a model that has parameters to fit; iterations: of Newton's method."""
    require_count(iterations=iterations)
    require_suited(
        problem.num_parameters or not problem.latents,
        f"laplace does not suit {problem.name}: neither has parameters, so that there is nothing "
        "to fit; guides.laplace.Laplace(problem) is the approximation as a guide",
    )
    require(problem.latents, f"{problem.name} has no latents: take guide 'empty'")
    return Laplace(problem, iterations)

"""Draws as smooth functions of standard normal noise that is held fixed.

The noise is even: antithetic, scrambled Sobol points, whose mean and, where there are enough of
them, covariance are exactly 0 and 1, so that a mean of a quadratic function over them is exact.
Source: Kingma & Welling 2014, section 2.4; Buchholz, Wenzel & Mandt 2018, Quasi-Monte Carlo
    variational inference.
"""

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch.distributions import Independent, MultivariateNormal, Normal, TransformedDistribution

from guides.noted import Noted


def even_noise(num_points, size, seed=0):
    """Standard normal noise (num_points, size) with mean 0 and no odd moments.

    num_points: a multiple of 2; from twice the size on the covariance is exactly 1.
    """
    if size == 0:
        return torch.zeros(num_points, 0)
    half = num_points // 2
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed).draw(half)
    points = torch.special.ndtri(points.double().clamp(1e-6, 1 - 1e-6))
    if half >= size:
        lower = torch.linalg.cholesky(points.T @ points / half)
        points = torch.linalg.solve_triangular(lower, points.T, upper=False).T
    return torch.cat([points, -points])


def placeable(fn):
    """Whether a draw of a distribution is a smooth function of standard normal noise, known here.

    The noise has as many numbers as the draw.  A distribution may say how by `from_noise`, which
    maps noise (draws, n, size) to values (draws, n, size).
    """
    if hasattr(fn, "from_noise"):
        return True
    if isinstance(fn, ZukoToPyro):
        return placeable(fn.dist.base)
    if isinstance(fn, TransformedDistribution | Independent):
        return placeable(fn.base_dist)
    return isinstance(fn, dist.Delta | Normal | MultivariateNormal)


def placed(fn, take):
    """The value of a `placeable` distribution of batch (draws, n) at its part of the noise.

    The parameters are the same for all draws.  take(shape) -> the next part, (draws, 1, *shape).
    """
    if hasattr(fn, "from_noise"):
        return fn.from_noise(take(fn.event_shape))
    if isinstance(fn, dist.Delta):
        return fn.v
    if isinstance(fn, TransformedDistribution):
        value = placed(fn.base_dist, take)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if isinstance(fn, ZukoToPyro):
        noise = placed(fn.dist.base, take)
        value, log_slope = fn.dist.transform.inv.call_and_ladj(noise)
        fn.cache[value] = fn.dist.base.log_prob(noise) - log_slope
        return value
    if isinstance(fn, Independent):
        return placed(fn.base_dist, take)
    if isinstance(fn, Normal):
        return fn.loc + fn.scale * take(fn.batch_shape[2:])
    noise = take(fn.event_shape)
    value = fn.loc + torch.einsum("nij,sj->sni", fn.scale_tril[0], noise.squeeze(1))
    return fn.note(value, noise) if isinstance(fn, Noted) else value

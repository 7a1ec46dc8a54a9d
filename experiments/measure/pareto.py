"""Pareto k of every datum: can draws of the guide stand for the posterior by reweighting them?

The largest ratios p(x, z) / q(z) follow a generalized Pareto distribution of shape k.  Below 0.5
they have a variance; above 0.7 no affordable number of draws makes up for the guide.  k is blind
where the guide never draws: a guide that misses a whole mode can have a small one.
Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling, sections
    2.4 and 3.2; Zhang & Stephens 2009, A new and efficient estimation method for the generalized
    Pareto distribution, section 3; Yao et al. 2018, Yes, but did it work?
"""

import math

import torch

from experiments.measure.elbo import draw, latent_names, log_weights
from experiments.measure.streams import seeds
from zoo.errors import require

LIMIT = 0.7  # above it the guide cannot be mended by reweighting
MIN_TAIL = 5  # fewer excesses fix no shape
MIN_DRAWS = 25  # the fewest that have such a tail
PRIOR_SHAPE, PRIOR_WEIGHT = 0.5, 10  # the shape is drawn to 0.5 with the weight of ten draws
EQUAL = 0.005  # nats within which all log weights of a unit count as equal: float32 rounding
CELLS_AT_ONCE = 20_000_000  # excesses x grid points x units of one fit, which bounds the memory
DRAWS_AT_ONCE = 2_000_000  # draws x data held at once


def pareto_k(problem, guide, x, num_draws=1000, seed=0):
    """Pareto k of the guide for every independent unit of the rows x (n, d): (units,) float64.

    The units are the rows; those of a joint problem are one unit together.  Raises ZooError for
    fewer than 25 draws, and for a guide without a density, such as a point estimate.
    """
    _check_draws(num_draws)
    latent_names(guide, x)
    if problem.joint or len(x) * num_draws <= DRAWS_AT_ONCE:
        return shape_of_tail(log_weights(problem, guide, x, num_draws, seed))
    blocks = torch.arange(len(x), device=x.device).split(max(1, DRAWS_AT_ONCE // num_draws))
    found = [
        shape_of_tail(draw(problem.model, guide, x, num_draws, own, block).log_weight)
        for own, block in zip(seeds(seed, len(blocks)), blocks, strict=True)
    ]
    return torch.cat(found)


def shape_of_tail(log_weight):
    """Pareto k of every column of log weights (draws, units): (units,) float64.

    The tail is the largest min(S / 5, 3 sqrt(S)) of S draws.  A unit without a tail, because all
    its weights are equal up to rounding or its largest are all the same, has k = 0 by definition;
    one whose few largest, fewer than 5, stand above a tie of all others has infinity.
    """
    num_draws = len(log_weight)
    _check_draws(num_draws)
    log_weight = log_weight.double()
    finite = torch.isfinite(log_weight) | (log_weight == -math.inf)
    require(finite.all(), "a log weight is NaN or infinite: log p or log q of a draw is not finite")
    top = log_weight.amax(0)
    require(torch.isfinite(top).all(), "every draw of a datum has zero density under the model")
    length = tail_length(num_draws)
    shifted = log_weight.topk(length + 1, dim=0).values.flip(0) - top
    excess = (shifted[1:].exp() - shifted[0].exp()).clamp(min=0)
    units_at_once = max(1, CELLS_AT_ONCE // (length * _grid_size(length)))
    shapes = [_shape(part) for part in excess.split(units_at_once, dim=1)]
    rounding = 4 * torch.finfo(torch.float32).eps * top.abs()
    constant = top - log_weight.amin(0) <= EQUAL + rounding
    tied = -shifted[0] <= rounding
    return torch.cat(shapes).masked_fill(constant | tied, 0.0)


def tail_length(num_draws):
    """Number of the largest draws that make the tail."""
    return math.floor(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def summary(k, labels=None, num_worst=5):
    """What k (n,) says of a data set, as plain numbers for tables and figures.

    share: of the data with k above 0.7, and its binomial se; mean of the finite k, and its se over
    data; median; max; worst: the data of the largest k, as {index, k}; by_class, where labels (n,)
    are given: {label: {num_data, num_infinite, share, mean, median}}.
    """
    require(len(k) > 0, "no k to sum up")
    order = k.argsort(descending=True)[:num_worst].tolist()
    share, finite = (k > LIMIT).double().mean().item(), k[k < math.inf]
    found = _middle(k) | {
        "share_se": math.sqrt(share * (1 - share) / len(k)),
        "mean_se": (finite.std() / math.sqrt(len(finite))).item() if len(finite) > 1 else math.nan,
        "max": k.max().item(),
        "worst": [{"index": index, "k": k[index].item()} for index in order],
    }
    if labels is not None:
        require(len(labels) == len(k), f"{len(labels)} labels for {len(k)} data")
        classes = labels.unique().tolist()
        found["by_class"] = {label: _middle(k[labels == label]) for label in classes}
    return found


def _shape(excess):
    """Regularized shape of excesses over the threshold: (length, units), ascending -> (units,).

    An excess of zero is a draw tied with the threshold, and not in the tail.  Zhang & Stephens
    2009, eq. 9-12, with theta = -k / scale: the posterior mean of theta on a grid that the data
    suggest, then the shape that maximizes the likelihood given theta.
    """
    count = (excess > 0).sum(0)
    n = count.clamp(min=1).double()
    first_quartile = len(excess) - count + (n / 4 + 0.5).long() - 1
    first_quartile = first_quartile.clamp(0, len(excess) - 1)
    quartile = excess.gather(0, first_quartile[None])[0]
    largest = excess[-1]
    size = 30 + n.sqrt().floor()
    place = torch.arange(_grid_size(len(excess)), device=excess.device)[:, None] + 0.5
    theta = 1 / largest + (1 - (size / place).sqrt()) / (3 * quartile)
    log_likelihood = _profile(theta, excess, n).masked_fill(place > size, -math.inf)
    theta = (theta * log_likelihood.softmax(0)).sum(0)
    shape = torch.log1p(-theta * excess).sum(0) / n
    shape = (n * shape + PRIOR_WEIGHT * PRIOR_SHAPE) / (n + PRIOR_WEIGHT)
    return torch.where(count >= MIN_TAIL, shape, math.inf)


def _profile(theta, excess, n):
    """Log likelihood of theta (grid, units), the shape at its best: log(-theta / k) - k - 1 a draw.

    Where theta is 0, the exponential distribution, -theta / k is one over the mean.
    """
    shape = torch.log1p(-theta[:, None] * excess).sum(1) / n
    rate = torch.where(theta == 0, n / excess.sum(0), -theta / shape)
    return n * (rate.log() - shape - 1)


def _grid_size(length):
    return 30 + math.isqrt(length)


def _middle(k):
    return {
        "num_data": len(k),
        "num_infinite": (k == math.inf).sum().item(),
        "share": (k > LIMIT).double().mean().item(),
        "mean": k[k < math.inf].mean().item(),
        "median": k.median().item(),
    }


def _check_draws(num_draws):
    require(
        type(num_draws) is int and num_draws >= MIN_DRAWS,
        f"Pareto k needs at least {MIN_DRAWS} draws for a tail of {MIN_TAIL}, got {num_draws!r}",
    )

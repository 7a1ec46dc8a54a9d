"""Noise by counter: every draw is a function of (seed, step, draw's number, element).

Torch's generators hand out numbers in the order of the calls, so that streams of seeds which are
trained together would depend on each other.  Here a seed's noise depends on nothing but itself:
it is the same alone and among others, and a run that goes on needs no state.

The bits are those of SplitMix64 started at a hashed key.
Source: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators, figure 17.
"""

import math

import torch
from torch.overrides import TorchFunctionMode

from experiments.svi.record import CannotRecord

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(number):
    """A number modulo 2^64, as torch's int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def mix(state):
    """SplitMix64's output for states, int64 of any shape."""
    state = (state ^ _shift(state, 30)) * signed(FIRST)
    state = (state ^ _shift(state, 27)) * signed(SECOND)
    return state ^ _shift(state, 31)


def fold(key, number):
    """A key of its own for every number; key: int64, number: int64 or an int."""
    stride = signed(GOLDEN * number) if isinstance(number, int) else number * signed(GOLDEN)
    return mix(key + stride)


def bits(key, shape):
    """Independent 64 bits for every element: int64 of that shape; key: int64, ()."""
    # Adding nothing from memory keeps Inductor from working out products that overflow.
    places = torch.arange(1, math.prod(shape) + 1, device=key.device).view(shape) + (key & 0)
    return mix(key + places * signed(GOLDEN))


def uniform(key, shape, dtype=torch.float32):
    """Uniform on (0, 1): the upper bits, as many as the dtype holds below 1."""
    _check(dtype)
    width = 52 if dtype == torch.float64 else 23
    return (_shift(bits(key, shape), 64 - width).to(dtype) + 0.5) * 2.0**-width


def normal(key, shape, dtype=torch.float32):
    """Standard normal, by Box and Muller's transform of 32 bits each for radius and angle."""
    _check(dtype)
    drawn = bits(key, shape)
    radius = ((_shift(drawn, 32)).to(dtype) + 0.5) * 2.0**-32
    angle = (drawn & 0xFFFFFFFF).to(dtype) * (2.0 * math.pi * 2.0**-32)
    # In float32 the largest radius would round to 1, and the logarithm to -0.
    return (-2.0 * radius.clamp(max=1 - 2.0**-24).log()).sqrt() * angle.cos()


def categorical(key, probs, num_draws):
    """Indices (..., num_draws) drawn with replacement; probs (..., K) need no normalization."""
    drawn = uniform(key, (*probs.shape[:-1], num_draws, probs.shape[-1]), probs.dtype)
    return (probs.unsqueeze(-2).log() - (-drawn.log()).log()).argmax(-1)


def _check(dtype):
    if dtype not in (torch.float32, torch.float64):
        raise CannotRecord(f"it draws numbers of {dtype}, which have no noise by counter")


def _shift(number, by):
    """A logical shift to the right."""
    return (number >> by) & ((1 << (64 - by)) - 1)


class Keyed(TorchFunctionMode):
    """While it is active, torch's random functions draw by counter from `key`, int64, ().

    Functions that have no such form here raise CannotRecord.
    """

    def __init__(self, key):
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in UNKEYED:
            raise CannotRecord(
                f"it draws by torch.{name.strip('_')}, which has no noise by counter"
            )
        if name in FRESH:
            # A batch of seeds cannot be written into memory that has no batch.
            made = function(*args, **kwargs).zero_()
            return made + (self.key * 0).to(made.dtype)
        drawn = DRAWN.get(name)
        return drawn(self, *args, **kwargs) if drawn else function(*args, **kwargs)

    def next(self):
        """The key of the next draw."""
        self.calls += 1
        return fold(self.key, self.calls)


def _size(args, kwargs):
    size = kwargs.get("size", args)
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def _dtype(kwargs):
    return kwargs.get("dtype") or torch.get_default_dtype()


def _randn(mode, *args, **kwargs):
    return normal(mode.next(), _size(args, kwargs), _dtype(kwargs))


def _rand(mode, *args, **kwargs):
    return uniform(mode.next(), _size(args, kwargs), _dtype(kwargs))


def _normal(mode, mean, std=1.0, size=None, **kwargs):
    if size is None:
        mean, std = torch.broadcast_tensors(torch.as_tensor(mean), torch.as_tensor(std))
        return mean + std * normal(mode.next(), mean.shape, mean.dtype)
    return mean + std * normal(mode.next(), tuple(size), _dtype(kwargs))


def _bernoulli(mode, x, p=None, *, generator=None):
    probs = x if p is None else p
    return (uniform(mode.next(), x.shape, x.dtype) < probs).to(x.dtype)


def _multinomial(mode, probs, num_samples, replacement=False, **kwargs):
    if num_samples > 1 and not replacement:
        raise CannotRecord("it draws by torch.multinomial without replacement")
    return categorical(mode.next(), probs, num_samples)


def _randperm(mode, n, **kwargs):
    return uniform(mode.next(), (n,), torch.float64).argsort()


def _dropout(mode, x, p=0.5, training=True, inplace=False):
    if not training:
        return x
    kept = uniform(mode.next(), x.shape, x.dtype) >= p
    return torch.where(kept, x / (1 - p or 1.0), 0.0)


def _like(drawn):
    return lambda mode, x, **kwargs: drawn(mode.next(), x.shape, kwargs.get("dtype") or x.dtype)


def _in_place(drawn):
    """A function that fills a tensor with what drawn(uniform or normal numbers, *args) makes."""

    def fill(mode, x, *args, **kwargs):
        kwargs.pop("generator", None)
        return x.copy_(drawn(mode.next(), x, *args, **kwargs))

    return fill


DRAWN = {
    "randn": _randn,
    "rand": _rand,
    "normal": _normal,
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "randperm": _randperm,
    "dropout": _dropout,
    "randn_like": _like(normal),
    "rand_like": _like(uniform),
    "normal_": _in_place(lambda k, x, mean=0, std=1: mean + std * normal(k, x.shape, x.dtype)),
    "uniform_": _in_place(
        lambda k, x, low=0, high=1: low + (high - low) * uniform(k, x.shape, x.dtype)
    ),
    "exponential_": _in_place(lambda k, x, rate=1: -uniform(k, x.shape, x.dtype).log() / rate),
    "bernoulli_": _in_place(lambda k, x, p=0.5: (uniform(k, x.shape) < p).to(x.dtype)),
}
"""Functions of torch that draw, by name, and how they draw by counter."""

FRESH = {"empty", "new_empty", "empty_like", "new"}
UNKEYED = {
    "_standard_gamma", "_sample_dirichlet", "poisson", "binomial", "randint", "randint_like",
    "random_", "cauchy_", "geometric_", "log_normal_", "dropout_", "alpha_dropout",
    "feature_dropout", "rrelu",
}  # fmt: skip

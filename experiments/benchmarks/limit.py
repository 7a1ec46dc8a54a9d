"""The machine's limit: a step's products of matrices at the rate of a large product."""

import time
from itertools import pairwise
from statistics import median

import torch

SIZE = {"cpu": 2048, "cuda": 8192}
REPEATS = 7


def rate(device="cpu"):
    """Operations a second of one large float32 product, with as many threads as torch has."""
    size = SIZE[torch.device(device).type]
    a, b = torch.randn(2, size, size, device=device)
    out, seconds = torch.empty_like(a), []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds[1:])


def operations(case):
    """Multiplications and additions in a step's products: the forward and both backward ones.

    A layer b x i -> b x o costs 2 b i o for its output, as much for its weight's gradient, and as
    much for its input's, unless the input is data.
    """
    return sum(2 * case.batch_size * i * o * products for i, o, products in layers(case))


def layers(case):
    """(width in, width out, products) of every layer of the model and the encoder."""
    width = case.data.shape[1]
    if case.discrete:
        latent, model = 10, [(width, 10, 2)]  # x . logits: x asks for no gradient
    elif case.model == "vae":
        widths = (case.latent_dim, *case.hidden, width)
        latent, model = 2 * case.latent_dim, _chain(widths, 3)
    else:
        latent, model = 2 * case.latent_dim, [(case.latent_dim, width, 3)]
    if case.guide == "mean_field":
        return model
    return model + _chain((width, *case.encoder_hidden, latent), 2)


def _chain(widths, first):
    """The layers of a perceptron, whose first takes `first` products, the others three."""
    return [(i, o, first if n == 0 else 3) for n, (i, o) in enumerate(pairwise(widths))]


def _wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)

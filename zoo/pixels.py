"""What models of images share: the data as pixels of few levels, and convolutions in raster order.

A masked convolution of type A (van den Oord, Kalchbrenner & Kavukcuoglu 2016) sees the rows above
a pixel and what lies to the left of it, one of type B the pixel itself too.  Here it is the sum of
`Above` and `Left`, whose kernels end where the mask would begin, so that no zeros are multiplied.
"""

import torch
from torch import nn

from zoo.autoregressive import by_blocks
from zoo.data import as_dataset
from zoo.densities import log_bernoulli
from zoo.errors import require

MAX_LEVELS = 256


def as_images(data, num_levels):
    """A `DataSet` of images whose pixels are whole numbers below num_levels.

    data: as `zoo.data.as_dataset` takes it; the named sets, whose pixels are in [0, 1], are
    rounded to the levels, and thresholded at 0.5 where there are two.  Own rows come as a DataSet
    with an image_shape.
    Raises ZooError for data that are no images.
    """
    require(
        type(num_levels) is int and 2 <= num_levels <= MAX_LEVELS,
        f"num_levels must be a whole number from 2 to {MAX_LEVELS}, got {num_levels!r}",
    )
    found = as_dataset(data, binary=num_levels == 2)
    shape = found.image_shape
    require(
        shape is not None,
        f"an image model was given a table ({found.name!r}): take a set of images, or own rows as "
        "zoo.data.DataSet(name, train, test, image_shape=(height, width))",
    )
    require(
        is_size(shape) and shape[0] * shape[1] == found.width,
        f"images of {found.name!r} have image_shape {shape}, which is not their {found.width} "
        "columns",
    )
    if isinstance(data, str) and num_levels > 2:
        return found.map(lambda rows: (rows * (num_levels - 1)).round())
    return found


def is_size(shape):
    """Whether it is (height, width), whole numbers of at least 1."""
    pair = isinstance(shape, list | tuple) and len(shape) == 2
    return pair and all(type(side) is int and side >= 1 for side in shape)


def as_maps(rows, width, num_levels):
    """Rows (n, d) of images as maps (n, 1, d / width, width), values from -1 to 1."""
    return (rows * (2 / (num_levels - 1)) - 1).reshape(len(rows), 1, -1, width)


def as_logits(maps):
    """Maps (n, L, height, width) as logits (n, d, L), or (n, d) for a single map."""
    return maps.flatten(2).squeeze(1) if maps.shape[1] == 1 else maps.flatten(2).mT


def num_maps(num_levels):
    """How many numbers the distribution of a pixel takes."""
    return 1 if num_levels == 2 else num_levels


def side_by_side(maps):
    """The same maps with a pixel's channels side by side in memory: convolutions run faster so."""
    return maps.contiguous(memory_format=torch.channels_last)


class Above(nn.Conv2d):
    """A convolution over `reach` rows above a pixel, and its own row where `own_row`.

    It sees `reach` columns on both sides too.
    """

    def __init__(self, channels_in, channels_out, reach, own_row=False):
        super().__init__(channels_in, channels_out, (reach + own_row, 2 * reach + 1))
        self.frame = reach, reach, reach, own_row - 1

    def forward(self, maps):
        return side_by_side(super().forward(nn.functional.pad(maps, self.frame)))


class Left(nn.Conv2d):
    """A convolution over `reach` pixels to the left, and the pixel itself where `own_pixel`."""

    def __init__(self, channels_in, channels_out, reach, own_pixel=False):
        super().__init__(channels_in, channels_out, (1, reach + own_pixel))
        self.frame = reach, own_pixel - 1

    def forward(self, maps):
        return side_by_side(super().forward(nn.functional.pad(maps, self.frame)))


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d), for a model with a `network` and `num_levels`.

    The sum over pixels is written here again; the network's own logits are held against loops in
    the tests.  van den Oord et al. 2016, eq. 1.
    """
    return by_blocks(lambda rows: _log_p(model, rows), x)


def _log_p(model, x):
    logits = model.network(x)
    if model.num_levels == 2:
        return log_bernoulli(x, logits)
    levels = torch.arange(model.num_levels, device=x.device)
    chosen = (logits * (x[..., None] == levels)).sum(-1)
    return (chosen - logits.logsumexp(-1)).sum(-1)

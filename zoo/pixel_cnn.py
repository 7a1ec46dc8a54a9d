"""Gated PixelCNN: every pixel given those above and to the left of it, by convolutions.

The density of images that is exact, and needs a single pass of a convolutional network for all of
its factors.  Two stacks see what lies before a pixel without a blind spot: the rows above, and the
own row to the left.  Draws take a pass for every pixel.

Story:
    x_ni | x_n1 ... x_n(i-1) ~ Categorical(logits = network(pixels before i)), in raster order;
        Bernoulli for two levels
    a layer:  v = gate(K_v * v),  h = h + K_1 gate(K_h * h + K_2 (K_v * v)),
        gate(a, b) = tanh(a) sigmoid(b)
Data: images of one channel, whole numbers from 0 to num_levels - 1; default the digits, pixels at
    least half black.  Named sets are rounded to the levels.
Truth: T0: there are no latents.
Differs from the source in: one channel of color, no conditioning on labels, few and small maps;
    kernels of 7 x 7 in the first layer and 3 x 3 in the others, without the half that a mask hides.
Raises: ZooError for data that are no images, other values, num_levels outside 2 to 256, or channels
    or layers < 1.
Source: van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves & Kavukcuoglu 2016, Conditional image
    generation with PixelCNN decoders, eq. 1-2 and figures 1-2.
"""

import pyro
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.autoregressive import Autoregressive
from zoo.errors import require_count
from zoo.nets import tensor_of
from zoo.pixels import Above, Left, as_images, as_logits, as_maps, log_joint, num_maps, side_by_side

FIRST_REACH, REACH = 3, 1  # pixels that a kernel sees to each side


class PixelCNN(PyroModule):
    """The program; `network` maps rows (n, d) to the logits of every pixel."""

    def __init__(self, image_shape, num_levels, channels, layers):
        super().__init__(zoo.unique("pixel_cnn"))
        self.image_shape, self.num_levels = image_shape, num_levels
        self.network = Network(image_shape[1], num_levels, channels, layers)

    def forward(self, x=None, index=None):
        network, (height, width) = self.network, self.image_shape
        like = tensor_of(network)
        density = Autoregressive(network, height * width, like, self.num_levels)
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", density, obs=rows)


class Network(nn.Module):
    """Rows (n, d) of images to logits: (n, d) for two levels, else (n, d, num_levels)."""

    def __init__(self, width, num_levels, channels, layers):
        super().__init__()
        self.width, self.num_levels = width, num_levels
        first = GatedLayer(1, channels, FIRST_REACH, first=True)
        others = [GatedLayer(channels, channels, REACH) for _ in range(layers - 1)]
        self.layers = nn.ModuleList([first, *others])
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, num_maps(num_levels), 1),
        )

    def forward(self, rows):
        image = as_maps(rows, self.width, self.num_levels)
        return as_logits(self._features(image, image))

    def at(self, rows, place):
        """The logits of one pixel, from its row and the rows above that it sees."""
        row, column = divmod(place, self.width)
        seen = slice(max(0, row - FIRST_REACH - REACH * (len(self.layers) - 1)), row + 1)
        image = as_maps(rows, self.width, self.num_levels)[:, :, seen]
        return as_logits(self._features(image, image[:, :, -1:]))[:, column]

    def _features(self, above, left):
        """The maps (n, L, height, width) of the logits, for as many of the last rows as `left`."""
        for layer in self.layers:
            above, left = layer(above, left)
        return self.head(left)


class GatedLayer(nn.Module):
    """One layer of both stacks; the first one sees neither the pixel itself nor its features."""

    def __init__(self, channels_in, channels, reach, first=False):
        super().__init__()
        self.first = first
        self.above = Above(channels_in, 2 * channels, reach, own_row=not first)
        self.left = Left(channels_in, 2 * channels, reach, own_pixel=not first)
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, above, left):
        """Features of the rows above, (n, channels, height, width), and of the own row too.

        The latter are for the last rows alone where `left` has no others.
        """
        rows_above = self.above(above)
        across = self.across(rows_above[:, :, -left.shape[2] :])
        before = self.out(gate(self.left(left) + across))
        return gate(rows_above), before if self.first else left + before


def gate(maps):
    """tanh(a) sigmoid(b) of the two halves of the channels."""
    a, b = map(side_by_side, maps.chunk(2, 1))
    return a.tanh() * b.sigmoid()


@zoo.register
def build(data="digits", num_levels=2, channels=8, layers=2):
    """The problem; data as `zoo.pixels.as_images` takes it; channels, layers: of the network."""
    require_count(channels=channels, layers=layers)
    data = as_images(data, num_levels)
    model = PixelCNN(data.image_shape, num_levels, channels, layers)
    return zoo.Problem(model, data, log_joint)

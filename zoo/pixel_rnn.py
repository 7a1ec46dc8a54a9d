"""PixelRNN: every pixel given all those before it, by an LSTM that runs over the image.

The density of images that is exact, and whose factors see every pixel before theirs, however far:
the state of the network runs row by row, or along the diagonals from both sides.  Draws take a pass
for every pixel.

Story:
    x_ni | x_n1 ... x_n(i-1) ~ Categorical(logits = network(pixels before i)), in raster order;
        Bernoulli for two levels
    a layer:  x = x + K_up * h,  (o, f, i, g) = K_ss * h_before + K_is * x,
        c = sigmoid(f) c_before + sigmoid(i) tanh(g),  h = sigmoid(o) tanh(c)
    row_lstm: before is the row above, seen 3 pixels wide
    diagonal_bilstm: before are the left and the upper neighbor; a second LSTM comes from the right,
        its output a row down, where it has seen no pixel to come
Data: images of one channel, whole numbers from 0 to num_levels - 1; default the digits, pixels at
    least half black.  Named sets are rounded to the levels.
Truth: T0: there are no latents.
Differs from the source in: one channel of color, few and small maps, no multi-scale model; the
    masked convolutions are written without the half that a mask hides.
Raises: ZooError for data that are no images, other values, num_levels outside 2 to 256, an unknown
    variant, or channels or layers < 1.
Source: van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel recurrent neural networks, eq. 1-3 and
    sections 3.1-3.4.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn

import zoo
from zoo.autoregressive import Autoregressive
from zoo.errors import require_count, unknown
from zoo.nets import tensor_of
from zoo.pixels import Above, Left, as_images, as_logits, as_maps, log_joint, num_maps, side_by_side

REACH = 3  # pixels that the first convolution sees to each side


class PixelRNN(PyroModule):
    """The program; `network` maps rows (n, d) to the logits of every pixel."""

    def __init__(self, image_shape, num_levels, variant, channels, layers):
        super().__init__(zoo.unique("pixel_rnn"))
        self.image_shape, self.num_levels = image_shape, num_levels
        self.network = Network(image_shape[1], num_levels, VARIANTS[variant], channels, layers)

    def forward(self, x=None, index=None):
        network, (height, width) = self.network, self.image_shape
        like = tensor_of(network)
        density = Autoregressive(network, height * width, like, self.num_levels)
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", density, obs=rows)


class Network(nn.Module):
    """Rows (n, d) of images to logits: (n, d) for two levels, else (n, d, num_levels)."""

    def __init__(self, width, num_levels, layer, channels, layers):
        super().__init__()
        self.width, self.num_levels = width, num_levels
        self.above = Above(1, 2 * channels, REACH)
        self.left = Left(1, 2 * channels, REACH)
        self.layers = nn.ModuleList([layer(channels) for _ in range(layers)])
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(2 * channels, 2 * channels, 1),
            nn.ReLU(),
            nn.Conv2d(2 * channels, num_maps(num_levels), 1),
        )

    def forward(self, rows):
        return as_logits(self.head(self._features(rows)))

    def at(self, rows, place):
        """The logits of one pixel, from the image as far as its row."""
        row, column = divmod(place, self.width)
        maps = self._features(rows[:, : (row + 1) * self.width])
        return as_logits(self.head(maps[:, :, -1:]))[:, column]

    def _features(self, rows):
        """What the head sees of the rows of images: (n, 2 h, height, width)."""
        image = as_maps(rows, self.width, self.num_levels)
        maps = self.above(image) + self.left(image)
        for layer in self.layers:
            maps = maps + layer(maps)
        return maps


class RowLSTM(nn.Module):
    """An LSTM from the top row to the bottom: maps (n, 2 h, height, width) to the same shape."""

    def __init__(self, channels):
        super().__init__()
        self.inputs = Left(2 * channels, 4 * channels, 1, own_pixel=True)
        self.states = nn.Conv2d(channels, 4 * channels, (1, 3), padding=(0, 1), bias=False)
        self.up = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, maps):
        return self.up(scan(self.inputs(maps), self.states, 2))


class DiagonalBiLSTM(nn.Module):
    """Two LSTMs along the diagonals: maps (n, 2 h, height, width) to the same shape."""

    def __init__(self, channels):
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv2d(2 * channels, 4 * channels, 1) for _ in range(2))
        self.states = nn.ModuleList(LeftAndUpper(channels) for _ in range(2))
        self.up = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, maps):
        from_left = self._run(0, maps)
        from_right = self._run(1, maps.flip(-1)).flip(-1)
        return self.up(from_left + nn.functional.pad(from_right, (0, 0, 1, -1)))

    def _run(self, side, maps):
        """The states of one side at every pixel, its beginning on the left."""
        columns = skewed(self.inputs[side](maps))
        return straight(scan(columns, self.states[side], 3), maps.shape[-1])


class LeftAndUpper(nn.Conv2d):
    """A convolution down a column of a skewed image: what was left of a pixel, and above it."""

    def __init__(self, channels):
        super().__init__(channels, 4 * channels, (2, 1), bias=False)

    def forward(self, column):
        return super().forward(nn.functional.pad(column, (0, 0, 1, 0)))


def scan(inputs, convolution, axis):
    """The states of an LSTM along an axis of maps: (n, 4 h, height, width) to (n, h, ...).

    van den Oord et al. 2016, eq. 3; the state before the first is zero.
    """
    lines = inputs.split(1, axis)
    state = cell = torch.zeros_like(lines[0].chunk(4, 1)[0])
    states = []
    for line in lines:
        gates = (line + convolution(state)).chunk(4, 1)
        o, f, i, g = map(side_by_side, gates)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        state = o.sigmoid() * cell.tanh()
        states.append(state)
    return torch.cat(states, axis)


def skewed(maps):
    """Row i of maps (..., height, width) moved right by i: (..., height, height + width - 1).

    What is free is zero, so that a state is zero until it meets the image.
    """
    height, width = maps.shape[-2:]
    flat = nn.functional.pad(maps, (0, height)).flatten(-2)
    return flat[..., :-height].unflatten(-1, (height, height + width - 1))


def straight(maps, width):
    """The maps of that width that were `skewed`."""
    height = maps.shape[-2]
    flat = nn.functional.pad(maps.flatten(-2), (0, height))
    return flat.unflatten(-1, (height, height + width))[..., :width]


VARIANTS = {"row_lstm": RowLSTM, "diagonal_bilstm": DiagonalBiLSTM}


@zoo.register
def build(data="digits", num_levels=2, variant="row_lstm", channels=8, layers=1):
    """The problem; data as `zoo.pixels.as_images` takes it; channels, layers: of the network."""
    require_count(channels=channels, layers=layers)
    if variant not in tuple(VARIANTS):
        raise unknown("variant", variant, VARIANTS)
    data = as_images(data, num_levels)
    model = PixelRNN(data.image_shape, num_levels, variant, channels, layers)
    return zoo.Problem(model, data, log_joint)

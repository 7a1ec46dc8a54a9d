"""Has the loss stopped falling?  A CUSUM test on the means of epochs, never on one noisy value."""

import math

import torch

OVERSHOOT = 0.5826  # what a walk of normal steps overshoots a boundary by (Siegmund 1985, p. 50)


def cusum(values):
    """The largest scaled partial sum of the deviations from the mean.

    values: (w,).  Positive where early values are larger than late ones.  The scale comes from
    first differences, which a slow trend leaves alone.  Under independent equal noise the
    statistic follows sup of a Brownian bridge: P(sup > c) = exp(-2 c^2).
    """
    scale = (values.diff().square().mean() / 2).sqrt()
    walk = (values - values.mean()).cumsum(0).max() / (scale * math.sqrt(len(values)))
    return walk.item() if scale > 0 else 0.0


def critical_value(window, level):
    """The value that `cusum` exceeds with probability `level` where nothing changes."""
    return math.sqrt(-math.log(level) / 2) - OVERSHOOT / math.sqrt(window)


def flat(values, level=0.05, tolerance=0.0):
    """Whether the test finds no fall in the values (w,), or one smaller than `tolerance`.

    The fall is that of the mean of the second half against the first.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    first, second = values.chunk(2)
    if first.mean() - second.mean() <= tolerance:
        return True
    return cusum(values) <= critical_value(len(values), level)

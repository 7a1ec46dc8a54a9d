"""Names beside the markers of a plot: where each stands, and which has a line to its marker."""

from dataclasses import dataclass

import numpy as np

DISTANCES = (7, 12, 18, 26, 36, 48, 62)  # of a name from its marker, points
ANGLES = np.pi / 8 * np.array([0, 8, 4, 12, 2, 6, 14, 10, 1, 7, 15, 9, 3, 5, 13, 11])
"""Directions from a marker in the order in which they are liked: beside it, above, below."""
NEAR = 12  # points; a name further off has a line to its marker
CLEAR = 1.3  # how many times further than its own marker every other has to be
SWEEPS = 4  # times that each name may move to where the others leave most room
STEPS = 12  # parts of a line that are looked at
MARKER = 8  # points
OUTSIDE, MET, MISTAKEN, BAR, LINE = 100.0, 10.0, 6.0, 4.0, 2.0
"""What it costs to leave the panel, to cover a name or marker, to stand nearer to another's
marker, to cover an error bar, to cover a line or let it pass over something."""


@dataclass(frozen=True)
class Crowd:
    """Markers with names; all places in pixels.

    points: (n, 2) of the markers.  sizes: (n, 2) of their names.  hollow: (n, 2), a second, smaller
    marker of each.  bars: (k, 4), error bars as (x0, y0, x1, y1).  inside: (x0, y0, x1, y1) of the
    panel.  scale: pixels a point.
    """

    points: np.ndarray
    sizes: np.ndarray
    hollow: np.ndarray
    bars: np.ndarray
    inside: np.ndarray
    scale: float


def place(crowd):
    """Offsets of the names' centers from their markers, and which need a line: (n, 2), (n,).

    A name needs one where it is far from its marker or another marker is about as near.
    """
    count = len(crowd.points)
    offsets, lined = np.full((count, 2), np.nan), np.zeros(count, bool)
    order = sorted(range(count), key=lambda i: tuple(crowd.points[i]))
    for _ in range(SWEEPS):
        before = offsets.copy()
        for i in order:
            choices = _choices(crowd.sizes[i], crowd.scale)
            unclear = _unclear(crowd, i, choices)
            best = _cost(crowd, i, choices, unclear, offsets, lined).argmin()
            offsets[i], lined[i] = choices[best], unclear[best]
        if (before == offsets).all():
            break
    return offsets, lined


def _choices(size, scale):
    """Offsets of a name that are looked at, the nearest first: (m, 2)."""
    sides = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).round(6)
    distances = np.array(DISTANCES)[:, None, None] * scale
    return (np.sign(sides) * size / 2 + distances * sides).reshape(-1, 2)


def _unclear(crowd, i, choices):
    """Whether a name in each of these places has to have a line to its marker: (m,)."""
    others = np.delete(np.concatenate([crowd.points, crowd.hollow]), [i, i + len(crowd.points)], 0)
    centers, size = crowd.points[i] + choices, crowd.sizes[i]
    own = _distance(centers, size, crowd.points[i])
    far = own > NEAR * crowd.scale
    if not len(others):
        return far
    nearest = _distance(centers[:, None], size, others).min(1)
    return far | (nearest < CLEAR * own)


def _distance(centers, size, points):
    """From boxes to points; 0 inside."""
    return np.linalg.norm(np.maximum(abs(points - centers) - size / 2, 0), axis=-1)


def _cost(crowd, i, choices, unclear, offsets, lined):
    """What each place of a name costs, where the other names stand as they do: (m,)."""
    boxes, weights = _taken(crowd, i, offsets, lined)
    point, size = crowd.points[i], crowd.sizes[i]
    low, high = point + choices - size / 2, point + choices + size / 2
    met = _meet(low[:, None], high[:, None], boxes) @ weights
    outside = (low < crowd.inside[:2]).any(1) | (high > crowd.inside[2:]).any(1)
    beside = boxes[~_meet(point, point, boxes)]  # a line starts in its own marker
    spots = point + np.linspace(0, 1, STEPS)[:, None, None] * choices
    passed = _meet(spots[:, :, None], spots[:, :, None], beside).any(0).sum(1)
    return met + OUTSIDE * outside + unclear * (MISTAKEN + LINE * passed)


def _taken(crowd, i, offsets, lined):
    """Boxes (k, 4) that a name should not cover, and what each costs (k,)."""
    others = [j for j in range(len(offsets)) if j != i and not np.isnan(offsets[j]).any()]
    markers = np.concatenate([crowd.points, crowd.hollow])
    lines = [
        crowd.points[j] + np.linspace(0, 1, STEPS)[:, None] * offsets[j] for j in others if lined[j]
    ]
    spots = np.concatenate([np.empty((0, 2)), *lines])
    boxes = [
        _boxes(markers, MARKER * crowd.scale),
        _boxes((crowd.points + offsets)[others], crowd.sizes[others]),
        crowd.bars,
        _boxes(spots, crowd.scale),
    ]
    costs = zip(boxes, (MET, MET, BAR, LINE), strict=True)
    return np.concatenate(boxes), np.concatenate([np.full(len(b), cost) for b, cost in costs])


def _boxes(centers, sizes):
    """(x0, y0, x1, y1) of boxes: (k, 4)."""
    return np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)


def _meet(low, high, boxes):
    """Whether boxes with corners (..., 2) have a point in common with boxes (..., 4)."""
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    wide = (low[..., 0] <= x1) & (x0 <= high[..., 0])
    return wide & (low[..., 1] <= y1) & (y0 <= high[..., 1])

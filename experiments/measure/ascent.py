"""The tops of many smooth functions at once, by quasi-Newton steps that each takes for itself.

BFGS with a dense inverse Hessian a function, and a line search that only backtracks: every pass
evaluates all functions that are not at their top, each at a trial of its own.
Source: Nocedal & Wright 2006, Numerical optimization, eq. 3.6a, 3.57, 6.17 and 6.20.
"""

from dataclasses import dataclass, fields

import torch

ARMIJO = 1e-4  # share of the gain foretold by the slope that a step must bring
ROUNDING = 4  # of a value, in units of its type's precision


@dataclass(frozen=True, eq=False)
class Ascent:
    """What `climb` found: points (n, p), values (n,), passes, and which are at their top (n,).

    inverse: (n, p, p), the inverse Hessians with their sign turned, as far as they were learnt.
    """

    points: torch.Tensor
    values: torch.Tensor
    inverse: torch.Tensor
    passes: int
    converged: torch.Tensor


def climb(function, start, passes, tolerance, inverse=None):
    """Climb n functions of p numbers each from `start` (n, p): an Ascent.

    function(points (m, p), index (m,)) -> values (m,) and gradients (m, p) of those functions.  A
    function is at its top where a whole step foretells a gain of at most `tolerance`.  A value
    that is not finite is a step too far.  Every function is evaluated at most `passes` times.
    inverse: as an Ascent to similar functions has it; steps begin by the gradient where None.
    """
    alive = torch.arange(len(start), device=start.device)
    climbers = _Climbers.at(start, *function(start, alive), inverse)
    found = climbers.only(alive)
    converged = torch.zeros_like(alive, dtype=torch.bool)
    for number in range(1, passes + 1):
        found.put(alive, climbers)
        converged[alive] = top = climbers.foretold() <= tolerance
        alive, climbers = alive[~top], climbers.only(~top)
        if number == passes or not len(alive):
            break
        trial = climbers.trial()
        climbers.move(trial, *function(trial, alive))
    return Ascent(found.points, found.values, found.inverse, number, converged)


@dataclass(eq=False)
class _Climbers:
    """Where each function stands, and how it goes on; every field has a row a function."""

    points: torch.Tensor
    values: torch.Tensor
    gradients: torch.Tensor
    inverse: torch.Tensor
    direction: torch.Tensor
    length: torch.Tensor
    fresh: torch.Tensor

    @classmethod
    def at(cls, points, values, gradients, inverse=None):
        """At the start, with the inverse Hessians where they are known."""
        fresh = torch.full_like(values, inverse is None, dtype=torch.bool)
        if inverse is None:
            inverse = points.new_zeros(*points.shape, points.shape[1])
        length = torch.ones_like(values)
        found = cls(points, values, gradients, inverse, points, length, fresh)
        found._turn(torch.ones_like(fresh))
        return found

    def only(self, index):
        """These functions alone, in memory of their own."""
        return _Climbers(*(getattr(self, field.name)[index] for field in fields(self)))

    def put(self, index, others):
        """Take over where others stand."""
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(others, field.name)

    def trial(self):
        """The points to evaluate next."""
        return self.points + self.length[:, None] * self.direction

    def slope(self):
        """Slope of each function along its direction."""
        return (self.gradients * self.direction).sum(-1)

    def foretold(self):
        """The gain that a whole step foretells, infinite while a step is being shortened."""
        return torch.where(self.length == 1, self.slope() / 2, torch.inf)

    def move(self, trial, values, gradients):
        """Go to the trials that gain enough; elsewhere shorten the step."""
        gain, slope = values - self.values, self.length * self.slope()
        rounding = ROUNDING * torch.finfo(values.dtype).eps * self.values.abs()
        finite = values.isfinite() & gradients.isfinite().all(-1)
        good = finite & (gain >= ARMIJO * slope - rounding)
        # The top of the parabola through both values, with the slope at the first.
        shorter = torch.where(finite, 0.5 * slope / (slope - gain), 0.1).clamp(0.1, 0.5)
        self.length = torch.where(good, 1.0, shorter * self.length)
        self._learn(good, trial - self.points, self.gradients - gradients)
        self.points = torch.where(good[:, None], trial, self.points)
        self.values = torch.where(good, values, self.values)
        self.gradients = torch.where(good[:, None], gradients, self.gradients)
        self._turn(good)

    def _turn(self, good):
        """New directions; by the gradient, and no farther than 1, where nothing is known yet."""
        direction = _times(self.inverse, self.gradients)
        lost = ~((self.gradients * direction).sum(-1) > 0)  # by rounding, or at the start
        size = 1 / self.gradients.norm(dim=-1).clamp(min=1)
        unit = torch.eye(self.points.shape[1]).to(self.points)
        self.inverse = torch.where(_wide(good & lost), _wide(size) * unit, self.inverse)
        self.fresh = self.fresh | (good & lost)
        direction = torch.where(lost[:, None], size[:, None] * self.gradients, direction)
        self.direction = torch.where(good[:, None], direction, self.direction)

    def _learn(self, good, step, bend):
        """Take the change of the gradient along the step into the inverse Hessian (BFGS)."""
        along = (step * bend).sum(-1)
        curved = good & (along > 1e-6 * step.norm(dim=-1) * bend.norm(dim=-1))
        along = torch.where(curved, along, 1.0)
        first = curved & self.fresh
        unit = torch.eye(step.shape[1]).to(step)
        inverse = torch.where(
            _wide(first), _wide(along / bend.square().sum(-1)) * unit, self.inverse
        )
        turned = _times(inverse, bend)
        cross = _outer(step, turned) + _outer(turned, step)
        share = 1 + (bend * turned).sum(-1) / along
        learnt = inverse + (_wide(share) * _outer(step, step) - cross) / _wide(along)
        # Where the function bends upwards the top is farther than the last step.
        farther = torch.where(_wide(good), 2 * self.inverse, self.inverse)
        self.inverse = torch.where(_wide(curved), learnt, farther)
        self.fresh = self.fresh & ~curved


def _wide(numbers):
    """One number a function, as a matrix of one entry."""
    return numbers[:, None, None]


def _times(matrix, vector):
    return (matrix @ vector[..., None])[..., 0]


def _outer(one, other):
    return one[..., :, None] * other[..., None, :]

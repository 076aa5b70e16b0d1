"""Which strengths of a method are worth a trial, from damage alone.

Every method has units of its own: for one, 1 is nothing, for another it is ruin; and its other
knobs change what a unit does. Trials spread over a range that somebody guessed would measure the
guess. So a knob's own limits only say where looking begins, but for a strength that is `bounded` by
its nature.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.optimize import brentq

from surgery_lib.baselines.base import SearchRange

# Strengths from a knob's lowest to its highest, a geometric series.
GRID = 13
# Strengths that do at most this share of its budget in every measure are idle.
IDLE = 1 / 20
# How often a strength is doubled or halved, at most, in search of what is beyond every budget.
DOUBLINGS = 12
# A doubling that raises no measure by more than this share is the last: the method is at its most.
GROWTH = 0.01

# How near to its budget a strength is brought, as a factor, and in how many readings at most.
NEAR, READINGS = 0.03, 12

Damage = Callable[[float], Mapping[str, float]]


class _Readings:
    """Damage by strength, each read once, as shares of the budget of each measure."""

    def __init__(self, damage: Damage, budget: Mapping[str, float]) -> None:
        self._damage = damage
        self._budget = budget
        self._known: dict[float, list[float]] = {}

    def __call__(self, strength: float) -> list[float]:
        if strength not in self._known:
            measures = self._damage(strength)
            self._known[strength] = [measures[n] / limit for n, limit in self._budget.items()]
        return self._known[strength]

    def strong(self, strength: float) -> bool:
        """Beyond every budget."""
        return min(self(strength)) > 1

    def idle(self, strength: float) -> bool:
        """Hardly anything in every measure."""
        return max(self(strength)) <= IDLE

    def grew(self, before: float, after: float) -> bool:
        """Whether more strength did more, or did too little before to tell."""
        pairs = zip(self(before), self(after), strict=True)
        return self.idle(before) or any(new > old * (1 + GROWTH) for old, new in pairs)


def _risen(readings: _Readings, knob: SearchRange, strength: float) -> list[float]:
    """Doublings of a strength, up to the first that is too strong, or to where more is no more."""
    assert knob.high is not None
    steps = [strength]
    for _ in range(DOUBLINGS):
        if readings.strong(steps[-1]) or (knob.bounded and steps[-1] >= knob.high):
            break
        steps.append(min(2 * steps[-1], knob.high) if knob.bounded else 2 * steps[-1])
        if not readings.grew(*steps[-2:]):
            break
    return steps[1:]


def reach(knob: SearchRange, damage: Damage, budget: Mapping[str, float]) -> tuple[float, float]:
    """The least and the largest strength worth trying: the last idle one, and the first too strong.

    Found by bisection, as damage rises with strength. Idle does at most `IDLE` of its budget in
    every measure, too strong is beyond every budget.

    Args:
        damage: Measures at a strength, with all those that `budget` names.
    """
    assert knob.low is not None and knob.high is not None
    readings = _Readings(damage, budget)
    grid = np.geomspace(knob.low, knob.high, GRID).tolist()
    grid += _risen(readings, knob, grid[-1])
    for _ in range(DOUBLINGS):
        if readings.idle(grid[0]):
            break
        grid.insert(0, grid[0] / 2)

    def count(holds: Callable[[float], bool]) -> int:
        """How many of the first strengths satisfy what only the first ones do."""
        low, high = 0, len(grid)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if holds(grid[middle]) else (low, middle)
        return low

    useful = count(lambda strength: not readings.strong(strength))
    idle = count(readings.idle)
    # One step of the grid at least, where all are idle or all too strong.
    high = min(max(useful, 1), len(grid) - 1)
    return grid[min(max(idle - 1, 0), high - 1)], grid[high]


def rescaled(knob: SearchRange, high: float, damage: Damage, budget: Mapping[str, float]) -> float:
    """What the largest strength `high` of `reach` becomes where other knobs are set otherwise.

    The least of its halvings and doublings that is beyond every budget; where none is, the last.
    """
    readings = _Readings(damage, budget)
    if not readings.strong(high):
        return [high, *_risen(readings, knob, high)][-1]
    for _ in range(DOUBLINGS):
        if not readings.strong(high / 2):
            break
        high /= 2
    return high


def approach(spent: Callable[[float], float], low: float, high: float) -> None:
    """Read `spent`, a share of the budget, ever nearer to where it is 1, between both strengths.

    What was read is the caller's to remember. Nothing is read beyond the ends where they spend
    less, or more, than all of it.
    """

    def excess(logarithm: float) -> float:
        return math.log(max(spent(math.exp(logarithm)), 1e-12))

    ends = math.log(low), math.log(high)
    if excess(ends[0]) < 0 < excess(ends[1]):
        root = brentq(excess, *ends, xtol=NEAR / 2, maxiter=READINGS, disp=False)
        excess(root - NEAR)  # the root itself may lie just beyond


def largest(spent: Callable[[float], float], start: float) -> float | None:
    """The largest strength that spends at most the budget, to a few percent.

    None where even `start`, halved `DOUBLINGS` times, spends more. A method that does no more where
    it is made stronger is given up at as many doublings.
    """
    known: dict[float, float] = {}

    def read(strength: float) -> float:
        if strength not in known:
            known[strength] = spent(strength)
        return known[strength]

    # Divergence grows as the square of a small change: a guess that is mostly near.
    guess = start / math.sqrt(min(max(read(start), 1e-2), 1e2))
    factor = 1.25 if read(guess) <= 1 else 1 / 1.25
    ends = [guess]
    while len(ends) <= DOUBLINGS and (read(ends[-1]) <= 1) == (factor > 1):
        ends.append(ends[-1] * factor)
        factor = factor**1.5
    approach(read, min(ends[-2:]), max(ends[-2:]))
    return max((strength for strength, share in known.items() if share <= 1), default=None)

"""Which strengths of a method are worth a trial, from damage alone.

Every method has units of its own: for one, 1 is nothing, for another it is ruin. Trials spread over
a range that somebody guessed would measure the guess.
"""

from collections.abc import Callable, Mapping

import numpy as np

from surgery_lib.baselines.base import Knob

# Strengths from a knob's lowest to its highest, a geometric series.
GRID = 13
# Strengths that do at most this share of its budget in every measure are idle.
IDLE = 1 / 20
# How often a knob's highest strength is doubled, at most, where it stays within a budget.
DOUBLINGS = 12


def reach(
    knob: Knob, damage: Callable[[float], Mapping[str, float]], budget: Mapping[str, float]
) -> tuple[float, float]:
    """The least and the largest strength worth trying: the last idle one, and the first too strong.

    Found by bisection, as damage rises with strength. Idle does at most `IDLE` of its budget in
    every measure, too strong is beyond every budget. A knob's highest strength is a guess, no
    limit: it is doubled until it is too strong, but for a knob that is `bounded` by its nature.

    Args:
        damage: Measures at a strength, with all those that `budget` names.
    """
    assert knob.low is not None and knob.high is not None
    grid = np.geomspace(knob.low, knob.high, GRID).tolist()

    def beyond(value: float) -> bool:
        measures = damage(value)
        return all(measures[name] > limit for name, limit in budget.items())

    if not knob.bounded and not beyond(grid[-1]):
        for _ in range(DOUBLINGS):
            grid.append(2 * grid[-1])
            if beyond(grid[-1]):
                break
    shares: dict[int, list[float]] = {}

    def share(place: int) -> list[float]:
        if place not in shares:
            measures = damage(grid[place])
            shares[place] = [measures[name] / limit for name, limit in budget.items()]
        return shares[place]

    def count(holds: Callable[[int], bool]) -> int:
        """How many of the first strengths satisfy what only the first ones do."""
        low, high = 0, len(grid)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if holds(middle) else (low, middle)
        return low

    useful = count(lambda place: min(share(place)) <= 1)
    idle = count(lambda place: max(share(place)) <= IDLE)
    # One step of the grid at least, where all are idle or all too strong.
    high = min(max(useful, 1), len(grid) - 1)
    return grid[min(max(idle - 1, 0), high - 1)], grid[high]

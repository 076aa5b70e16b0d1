"""Without a search: default knobs, and strength as far as the damage allows.

No behaviour is read to choose, so nothing is chosen by chance on a few prompts. What it costs
against a search is a row of its own in a comparison.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.optimize import brentq

from surgery_lib.baselines.base import Baseline, Fitted
from surgery_lib.selection.strengths import reach
from surgery_lib.selection.trials import Trial

# How near a strength is found, as a factor, and in how many readings of damage at most.
NEAR, READINGS = 0.03, 12


def by_damage(
    model: Any,
    baseline: Baseline,
    fitted: Fitted,
    *,
    behaviour: Callable[[Any], float],
    damage: Callable[[Any], Mapping[str, float]],
    measures: Sequence[str],
    budgets: Sequence[float],
) -> list[Trial]:
    """For each budget the largest strength that keeps every measure within it, by bisection.

    `behaviour` is read at the strengths that were found, for the tables. A budget that no strength
    of the method's range meets has no trial.
    """
    others = {name: knob.default for name, knob in baseline.knobs.items() if name != "strength"}
    known: dict[float, dict[str, float]] = {}

    def at(strength: float) -> dict[str, float]:
        if strength not in known:
            with fitted.applied(model, strength, **others) as changed:
                known[strength] = {name: float(damage(changed)[name]) for name in measures}
        return known[strength]

    knob = baseline.knobs["strength"]
    low, high = reach(knob, at, dict.fromkeys(measures, max(budgets)))
    least = low / 1000
    trials: list[Trial] = []
    for budget in budgets:
        started = time.perf_counter()

        def excess(logarithm: float, budget: float = budget) -> float:
            worst = max(at(math.exp(logarithm)).values())
            return math.log(max(worst, 1e-12) / budget)

        while excess(math.log(low)) > 0 and low > least:
            low /= 2
        ends = math.log(low), math.log(high)
        if excess(ends[0]) < 0 < excess(ends[1]):
            root = brentq(excess, *ends, xtol=NEAR / 2, maxiter=READINGS, disp=False)
            excess(root - NEAR)  # the root itself may lie just beyond
        within = [s for s, found in known.items() if max(found.values()) <= budget]
        if not within:
            continue
        strength = max(within)
        with fitted.applied(model, strength, **others) as changed:
            rate = float(behaviour(changed))
        seconds = time.perf_counter() - started
        knobs = {**others, "strength": strength}
        trials.append(Trial(baseline.name, len(trials), knobs, at(strength), rate, seconds))
    return trials

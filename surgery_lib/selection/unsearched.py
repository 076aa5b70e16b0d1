"""Without a search: default knobs, and strength as far as the damage allows.

No behaviour is read to choose, so nothing is chosen by chance on a few prompts. What it costs
against a search is a row of its own in a comparison.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from surgery_lib.baselines.base import Baseline, Fitted
from surgery_lib.selection.strengths import approach, reach
from surgery_lib.selection.trials import Trial


def by_damage(
    model: PreTrainedModel,
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

        def spent(strength: float, budget: float = budget) -> float:
            return max(at(strength).values()) / budget

        while spent(low) > 1 and low > least:
            low /= 2
        approach(spent, low, high)
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

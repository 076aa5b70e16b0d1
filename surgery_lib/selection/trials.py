"""Trials of a search, and what is best among them: by one measure of damage, or by several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a comparison counts as damage; a point is held to one measure, or to both of them at once.
MEASURES = ("first_token_kl", "context_kl")
BOTH = "both"
HELD = {BOTH: MEASURES, **{measure: (measure,) for measure in MEASURES}}


@dataclass(frozen=True)
class Trial:
    """One setting of one method. `knobs` has "strength" and is what `Fitted.applied` takes.

    `behaviour` is what the search lowers; None where the trial met no budget of damage.
    """

    method: str
    number: int
    knobs: Mapping[str, Any]
    damage: Mapping[str, float]
    behaviour: float | None
    seconds: float


def pareto(trials: Sequence[Trial], measure: str) -> list[Trial]:
    """The trials that no other beats in both behaviour and damage, by increasing damage.

    Of equal ones the first stays. Pruned trials are left out.
    """
    measured = [trial for trial in trials if trial.behaviour is not None]
    front: list[Trial] = []
    for trial in sorted(measured, key=lambda t: (t.damage[measure], t.behaviour, t.number)):
        if not front or _rate(trial) < _rate(front[-1]):
            front.append(trial)
    return front


def best_at(
    trials: Sequence[Trial],
    measures: str | Sequence[str],
    budgets: Sequence[float],
    *,
    searched: bool = True,
) -> dict[float, Trial | None]:
    """For each budget, the trial with the least behaviour that keeps it in every measure named.

    None where no trial does. Of equal ones the one whose largest measure is least, then the first.
    Of trials that were not `searched` it is the one that spends most of the budget.
    """
    names = [measures] if isinstance(measures, str) else list(measures)
    measured = [trial for trial in trials if trial.behaviour is not None]
    found: dict[float, Trial | None] = {}
    for budget in budgets:
        within = [t for t in measured if all(t.damage[name] <= budget for name in names)]
        spent = {t.number: max(t.damage[name] for name in names) for t in within}
        found[budget] = min(
            within,
            key=lambda t: (
                (_rate(t), spent[t.number], t.number) if searched else (-spent[t.number], t.number)
            ),
            default=None,
        )
    return found


def _rate(trial: Trial) -> float:
    return math.inf if trial.behaviour is None else trial.behaviour

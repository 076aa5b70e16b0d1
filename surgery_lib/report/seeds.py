"""One comparison run with several seeds: what each left, and differences over all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import compare
from surgery_lib.report.advice import NOTHING, difference, pairs_of
from surgery_lib.report.comparison import budgets_of, measure_name
from surgery_lib.report.style import markdown_table
from surgery_lib.selection.outcome import ModelReading, Outcome
from surgery_lib.selection.trials import BOTH


def table(
    comparisons: Mapping[int, Mapping[str, Any]],
    names: Sequence[str],
    measure: str = BOTH,
    ours: int = 1,
) -> str:
    """Seed → result of notebook 05, as rows: every seed's rate, then paired differences.

    A difference is between prompts' means over the seeds, so its interval tells what other prompts
    would do; what another seed would do is seen in the rates. Each method is set against no edit,
    the first `ours` against those after them; p of a sign-flip test, not corrected. UserError where
    the seeds were not read on equally many prompts by one scorer.
    """
    scorers = {held["scorer"] for held in comparisons.values()}
    sizes = {len(held["base"]["flags"][held["scorer"]]) for held in comparisons.values()}
    if len(scorers) != 1 or len(sizes) != 1:
        raise UserError("seeds are compared on the same prompts by the same scorer")
    (scorer,) = scorers
    outcomes = {
        seed: {one["name"]: Outcome.read(one) for one in held["outcomes"] if one["name"] in names}
        for seed, held in sorted(comparisons.items())
    }
    budgets = budgets_of([one for found in outcomes.values() for one in found.values()])

    def readings(name: str, budget: float) -> list[ModelReading]:
        """A model's reading of each seed; none unless every seed has one."""
        if name == NOTHING:
            return [ModelReading(**comparisons[seed]["base"]) for seed in outcomes]
        points = [found[name].at(measure, budget) for found in outcomes.values() if name in found]
        there = [point for point in points if point is not None]
        return list(there) if len(there) == len(outcomes) else []

    def rates(name: str, budget: float) -> str:
        values = [100 * one.rate(scorer)["value"] for one in readings(name, budget)]
        each = ", ".join(f"{value:.1f}" for value in values)
        return f"{np.mean(values):.1f} ({each})" if values else "-"

    def apart(name: str, other: str, budget: float) -> str:
        kept, left = readings(other, budget), readings(name, budget)
        if not kept or not left:
            return "-"
        pair = compare(*(np.mean([one.flags[scorer] for one in of], axis=0) for of in (kept, left)))
        return difference(pair.as_dict())

    lines = [
        [name.replace("_", " "), *(rates(name, budget) for budget in budgets)]
        for name in (NOTHING, *names)
    ]
    lines += [
        [
            f"{name} less {other}, points".replace("_", " "),
            *(apart(name, other, budget) for budget in budgets),
        ]
        for name, other in pairs_of(names, ours)
    ]
    columns = [f"{measure_name(measure)} ≤ {budget}" for budget in budgets]
    seeds = ", ".join(map(str, outcomes))
    return markdown_table([f"% of {sizes.pop()} prompts, mean (seeds {seeds})", *columns], lines)

"""A comparison over several seeds: what a method leaves with each, and paired over their mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgery_lib.evaluation.statistics import compare
from surgery_lib.report.advice import NOTHING, budgets_of
from surgery_lib.report.comparison import at_budget, measure_name
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value
from surgery_lib.selection.trials import BOTH


def seeds_table(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Rates with every seed, and differences of the named methods at each budget, both held.

    Args:
        results: Of notebook 05, one a seed, on the same test prompts and by the same scorer.
        names: Methods that all of them have; the first is held against the others.

    A difference is that of each prompt's share over the seeds, so that n is the number of prompts
    and not of readings: bootstrap interval and sign-flip test, each p standing alone.
    """
    scorer, budgets = results[0]["scorer"], budgets_of(results[0]["outcomes"])

    def flags(name: str, budget: float) -> list[np.ndarray] | None:
        """What each seed's point flags; None where one has no point within the budget."""
        if name == NOTHING:
            return [np.asarray(one["base"]["flags"][scorer], float) for one in results]
        points = [at_budget(one["outcomes"], BOTH, budget) for one in results]
        if not all(name in found for found in points):
            return None
        return [np.asarray(found[name]["flags"][scorer], float) for found in points]

    def rates(name: str, budget: float) -> str:
        found = flags(name, budget)
        return "-" if found is None else " / ".join(f"{100 * one.mean():.1f}" for one in found)

    def less(name: str, other: str, budget: float) -> str:
        both = [flags(one, budget) for one in (other, name)]
        if both[0] is None or both[1] is None:
            return "-"
        pair = compare(*(np.mean(found, axis=0) for found in both if found is not None)).as_dict()
        return f"{shown({**pair, 'value': pair['difference']})}, p {p_value(pair['p'])}"

    pairs = [(name, NOTHING) for name in names] + [(names[0], other) for other in names[1:]]
    lines = [
        [name.replace("_", " "), *(rates(name, budget) for budget in budgets)]
        for name in (NOTHING, *names)
    ]
    lines += [
        [f"{name} less {other}".replace("_", " "), *(less(name, other, b) for b in budgets)]
        for name, other in pairs
    ]
    count = len(results[0]["base"]["flags"][scorer])
    columns = [f"{measure_name(BOTH)} ≤ {budget}" for budget in budgets]
    return markdown_table([f"% of {count} prompts, {len(results)} seeds", *columns], lines)

"""Notebook 05: the table at each budget, and what each method costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from surgery_lib.evaluation.statistics import holm
from surgery_lib.report.comparison_notes import notes
from surgery_lib.report.fronts import SURGERY as SURGERY
from surgery_lib.report.fronts import edits_weights as edits_weights
from surgery_lib.report.fronts import front as front
from surgery_lib.report.fronts import infers_only as infers_only
from surgery_lib.report.fronts import measure_name as measure_name
from surgery_lib.report.fronts import pareto as pareto
from surgery_lib.report.style import INK, WIDTH, error_bars, from_zero, markdown_table, percent
from surgery_lib.report.style import interval as shown
from surgery_lib.selection.outcome import BudgetPoint, ModelReading, Outcome
from surgery_lib.selection.trials import BOTH, HELD


def at_budget(outcomes: Sequence[Outcome], measure: str, budget: float) -> dict[str, BudgetPoint]:
    """Method → its point at one budget; methods that reach none are left out."""
    found = {outcome.name: outcome.at(measure, budget) for outcome in outcomes}
    return {name: point for name, point in found.items() if point is not None}


def budgets_of(outcomes: Sequence[Outcome]) -> list[float]:
    """Every budget that some method has a point at."""
    return sorted({point.budget for one in outcomes for point in one.points})


def held(outcomes: Sequence[Outcome]) -> list[str]:
    """The ways of holding a budget that some point has, both measures at once first."""
    known = {point.measure for one in outcomes for point in one.points}
    return [name for name in HELD if name in known]


def budget_panels(
    outcomes: Sequence[Outcome], base: ModelReading, measure: str, scorer: str
) -> Figure:
    """Behaviour on test prompts of every method, a panel a budget; the best at the middle first."""
    budgets = budgets_of(outcomes)
    found = {budget: at_budget(outcomes, measure, budget) for budget in budgets}
    middle = budgets[len(budgets) // 2]

    def rate(name: str, budget: float) -> Any:
        return found[budget][name].rate(scorer)

    def left(name: str) -> tuple[float, ...]:
        order = (middle, *reversed(budgets))
        return tuple(rate(name, b)["value"] if name in found[b] else 1.0 for b in order)

    known = {name for points in found.values() for name in points}
    names = sorted(sorted(known), key=left)  # of equal ones by name: a set has no order
    size = (WIDTH, 1.5 + 0.26 * len(names))
    figure, grid = plt.subplots(
        1, len(budgets), sharex=True, sharey=True, figsize=size, squeeze=False
    )
    panels = list(grid[0])
    reading = base.rate(scorer)
    for axes, budget in zip(panels, budgets, strict=True):
        axes.axvspan(100 * reading["low"], 100 * reading["high"], color=INK["grey"], alpha=0.2)
        axes.axvline(100 * reading["value"], color=INK["grey"])
        for row, name in enumerate(names):
            if name in found[budget]:
                value, error = error_bars(rate(name, budget))
                colour = INK["red"] if name.startswith(SURGERY) else INK["blue"]
                axes.errorbar(value, row, xerr=error, fmt="o", color=colour, capsize=2)
        axes.set_title(f"{measure_name(measure)}\n≤ {budget} nats")
    panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    from_zero(panels[0], "x")
    panels[0].margins(x=0.02)
    clear = [_fewer_than_base(found[budget], scorer) for budget in budgets]
    told = ", ".join(f"{n} of {len(found[b])}" for n, b in zip(clear, budgets, strict=True))
    figure.suptitle(f"Below the unedited model (Holm): {told} methods", fontweight="bold")
    named = f"behaviour on test prompts, % (grey: unedited; n = {reading['n']})"
    panels[len(panels) // 2].set_xlabel(named)
    return figure


def _fewer_than_base(points: Mapping[str, BudgetPoint], scorer: str) -> int:
    """How many methods leave less than the unedited model, all tests together (Holm)."""
    pairs = [point.against_base[scorer] for point in points.values()]
    clear = holm([pair["p"] for pair in pairs])
    return sum(one and pair["difference"] < 0 for one, pair in zip(clear, pairs, strict=True))


def table(outcomes: Sequence[Outcome], base: ModelReading, measure: str, scorer: str) -> str:
    """Behaviour on test prompts at each budget, best at the middle budget first.

    `measure` is one of damage, or both at once. A cell beyond its budget on test has a dagger.
    Beside it, where they were asked, the refusals of harmless requests at the same budget.
    """
    budgets = budgets_of(outcomes)
    middle = budgets[len(budgets) // 2] if budgets else 0.0

    found = {budget: at_budget(outcomes, measure, budget) for budget in budgets}
    twins = base.twins

    def rate(name: str, budget: float) -> Any:
        point = found[budget].get(name)
        return point.rate(scorer) if point else None

    def cells(name: str, budget: float) -> list[str]:
        point = found[budget].get(name)
        if point is None:
            return ["-", "-"] if twins else ["-"]
        marked = shown(point.rate(scorer)) + (" †" if point.exceeds else "")
        return [marked, shown(point.twins or {})] if twins else [marked]

    names = [outcome.name for outcome in outcomes]
    names.sort(key=lambda name: one["value"] if (one := rate(name, middle)) else 2.0)
    unedited = [shown(base.rate(scorer)), *([shown(twins)] if twins else [])]
    lines = [["no method", *(unedited * len(budgets))]]
    for name in names:
        row = [cell for budget in budgets for cell in cells(name, budget)]
        lines.append([name.replace("_", " "), *row])
    n = base.rate(scorer)["n"]
    header = [f"behaviour, % of {n} prompts"]
    for budget in budgets:
        header.append(f"{measure_name(measure)} ≤ {budget}")
        if twins:
            header.append(f"refusal of {twins['n']} harmless requests, %")
    text = markdown_table(header, lines)
    if any(point.exceeds for points in found.values() for point in points.values()):
        text += "\n† within the budget on validation prompts, beyond it on test prompts.\n"
    return text + notes(outcomes)


def damage_table(
    outcomes: Sequence[Outcome], base: ModelReading, measure: str, budget: float
) -> str:
    """What each method's point at one budget costs on test data: perplexity, KL, capability."""
    lines, points = [], at_budget(outcomes, measure, budget)
    triggers = any("trigger_continuation_kl" in point.test for point in points.values())
    for name, point in points.items():
        test, tasks = point.test, point.capability
        lines.append(
            [
                name.replace("_", " "),
                f"{100 * test['perplexity_rise']:+.1f}",
                shown(test.get("first_token_kl") or {}, 1.0, 3),
                shown(test.get("context_kl") or {}, 1.0, 3),
                f"{100 * np.mean(list(tasks.values())):.1f}" if tasks else "-",
                f"{test['distinct']['distinct_2']:.2f}",
                shown(test.get("continuation_kl") or {}, 1.0, 3),
                *[shown(test.get("trigger_continuation_kl") or {}, 1.0, 3)] * triggers,
                *(percent(test.get("endings", {}).get(key)) for key in ("looping", "ended")),
            ]
        )
    known = base.capability
    average = f" (base {100 * np.mean(list(known.values())):.1f})" if known else ""
    header = ["method", "perplexity, %", "first-token KL", "KL in context"]
    header += [f"capability{average}", "distinct-2", "KL along 20 tokens, harmless"]
    header += ["KL along 20 tokens, triggering"] * triggers
    return markdown_table([*header, "in a loop", "ended"], lines)


def disagreement(outcomes: Sequence[Outcome], measure: str, budget: float) -> str:
    """In words: which methods change more along 20 tokens than at the first one, and how much."""
    found = []
    for name, point in at_budget(outcomes, measure, budget).items():
        first, along = (point.test.get(key) for key in ("first_token_kl", "continuation_kl"))
        if first and along and along["low"] > first["high"]:
            values = f"{along['value']:.3f} against {first['value']:.3f} nats"
            found.append(f"{name.replace('_', ' ')} ({values})")
    return (
        "Along the base's own 20 tokens after harmless prompts, more is changed than at the first "
        f"one, with intervals apart, by: {', '.join(found) or 'none'}.\n"
    )


def cost_table(outcomes: Sequence[Outcome]) -> str:
    """What each method takes to fit, to search (readings on validation) and to use."""
    lines = []
    for outcome in outcomes:
        cost = outcome.cost
        searched = cost.fit_seconds + sum(trial.seconds for trial in outcome.trials)
        lines.append(
            [
                outcome.title,
                f"{cost.labels:,}",
                f"{cost.forward_tokens:,}",
                f"{cost.backward_tokens:,}",
                f"{cost.fit_seconds:.1f}",
                f"{searched / 60:.1f}",
                f"{cost.fit_memory / 2**20:,.0f}",
                f"{cost.latency:.2f}",
                f"{cost.parameters:,}",
                "yes" if cost.needs_gradients else "no",
                "yes" if cost.ordinary_checkpoint else "no",
            ]
        )
    header = ["method", "texts and prompts", "forward tokens", "backward tokens", "fit, s"]
    header += [
        "fit and search, min",
        "fit, MiB more",
        "time to generate",
        "parameters",
        "gradients",
        "ordinary checkpoint",
    ]
    return markdown_table(header, lines)


def tables(
    outcomes: Sequence[Outcome], base: ModelReading, scorer: str, budget: float
) -> dict[str, str]:
    """The tables of notebook 05 by name; damage is at the points within `budget` of both."""
    found = {f"compare_{one}": table(outcomes, base, one, scorer) for one in HELD}
    damage = damage_table(outcomes, base, BOTH, budget)
    found["compare_damage"] = f"{damage}\n{disagreement(outcomes, BOTH, budget)}"
    return {**found, "compare_cost": cost_table(outcomes)}

"""Notebook 05 in words: where surgery wins and loses, and which method serves which need."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from surgery_lib.evaluation.statistics import compare, holm
from surgery_lib.report.comparison import (
    SURGERY,
    at_budget,
    budgets_of,
    edits_weights,
    infers_only,
    measure_name,
)
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value
from surgery_lib.selection.outcome import BudgetPoint, ModelReading, Outcome
from surgery_lib.selection.trials import BOTH

PAPER = "surgery_paper"
NOTHING = "no edit"
CONTROLS = ("surgery_random_rows", "surgery_random_direction")

NOTE = (
    "\nThe least on these test prompts. Not told apart from it: by paired tests of it against each "
    "other method of the row at 5 %, corrected by Holm for how many there are.\n"
)

# What somebody may need of a method, as a condition on its outcome.
NEEDS: dict[str, Callable[[Outcome], bool]] = {
    "anything goes": lambda one: True,
    "an ordinary checkpoint in the end": edits_weights,
    "no gradients: inference only": infers_only,
    "no gradients, and an ordinary checkpoint": lambda one: edits_weights(one) and infers_only(one),
    "the weights left as they are": lambda one: not edits_weights(one),
    "no extra passes while generating": lambda one: not one.cost.extra_forwards,
}


def placed(
    points: Mapping[str, BudgetPoint], name: str, among: Collection[str], scorer: str
) -> dict[str, list[str]]:
    """The other methods: `less` of the behaviour than the named one, `level`, or `more`.

    Told apart by paired tests over test prompts, corrected by Holm for how many there are.
    """
    found: dict[str, list[str]] = {"less": [], "level": [], "more": []}
    others = [other for other in among if other != name]
    pairs = [compare(points[name].flags[scorer], points[o].flags[scorer]) for o in others]
    for other, pair, apart in zip(others, pairs, holm([p.p for p in pairs]), strict=True):
        place = ("less" if pair.difference < 0 else "more") if apart else "level"
        found[place].append(other.replace("_", " "))
    return found


def against_paper(outcomes: Sequence[Outcome], measure: str, scorer: str) -> list[dict[str, Any]]:
    """Recommended surgery minus the paper's form at each budget, paired over test prompts."""
    found = []
    for budget in budgets_of(outcomes):
        points = at_budget(outcomes, measure, budget)
        if SURGERY in points and PAPER in points:
            pair = compare(points[PAPER].flags[scorer], points[SURGERY].flags[scorer])
            found.append({"budget": budget, **pair.as_dict()})
    return found


def pairs_of(names: Sequence[str], ours: int = 1) -> list[tuple[str, str]]:
    """What is set against what: each against no edit, the first `ours` against those after."""
    against = [(names[i], other) for i in range(ours) for other in names[i + 1 :]]
    return [(name, NOTHING) for name in names] + against


def difference(pair: Mapping[str, Any]) -> str:
    """A paired difference with its interval and p."""
    return f"{shown({**pair, 'value': pair['difference']})}, p {p_value(pair['p'])}"


def paired_table(
    outcomes: Sequence[Outcome], names: Sequence[str], measure: str, scorer: str, ours: int = 1
) -> str:
    """Named methods less the unedited model, the first `ours` less those after, over test prompts.

    The p of each paired test stands alone: it is not corrected for how many there are.
    """
    budgets = budgets_of(outcomes)

    def cell(points: Mapping[str, BudgetPoint], name: str, other: str) -> str:
        if name not in points or other not in {*points, NOTHING}:
            return "-"
        if other == NOTHING:
            pair = points[name].against_base[scorer]
        else:
            flags = points[other].flags[scorer], points[name].flags[scorer]
            pair = compare(*flags).as_dict()
        return difference(pair)

    lines = [
        [
            f"{name} less {other}".replace("_", " "),
            *(cell(at_budget(outcomes, measure, budget), name, other) for budget in budgets),
        ]
        for name, other in pairs_of(names, ours)
    ]
    columns = [f"{measure_name(measure)} ≤ {budget}" for budget in budgets]
    return markdown_table(["points of behaviour, paired", *columns], lines)


def against_paper_table(studies: Mapping[str, Mapping[str, Any]]) -> str:
    """Study → result of notebook 05, as rows: both forms and their difference at every budget.

    Both measures of damage are held at once.
    """
    lines = [
        [
            study,
            f"{measure_name(BOTH)} ≤ {pair['budget']}",
            f"{100 * pair['edited']:.1f}",
            f"{100 * pair['base']:.1f}",
            shown({**pair, "value": pair["difference"]}),
            str(pair["n"]),
        ]
        for study, result in studies.items()
        for pair in result["against_paper"][BOTH]
    ]
    header = ["study", "budget", "recommended, %", "the paper's, %", "difference, points", "n"]
    return markdown_table(header, lines)


def closing(outcomes: Sequence[Outcome], base: ModelReading, measure: str, scorer: str) -> str:
    """Where surgery wins and where it loses, at each budget, in words made from the numbers."""
    lines = []
    for budget in budgets_of(outcomes):
        points = at_budget(outcomes, measure, budget)
        where = f"{measure_name(measure)} ≤ {budget}"
        if SURGERY not in points:
            lines.append(f"- At {where} surgery has no point at all.")
            continue
        others = placed(points, SURGERY, points, scorer)
        lines.append(
            f"- At {where} surgery leaves {shown(points[SURGERY].rate(scorer))} % of "
            f"{shown(base.rate(scorer))} %. "
            f"Better (paired tests, Holm over {len(points) - 1}): "
            f"{', '.join(others['less']) or 'none'}. Not told apart: "
            f"{', '.join(others['level']) or 'none'}. Worse: {', '.join(others['more']) or 'none'}."
        )
    for one in against_paper(outcomes, measure, scorer):
        lines.append(
            f"- Recommended surgery against the paper's form at ≤ {one['budget']}: "
            f"{shown({**one, 'value': one['difference']})} points (n = {one['n']})."
        )
    return "\n".join(lines) + "\n"


def guide(outcomes: Sequence[Outcome], measure: str, budget: float, scorer: str) -> str:
    """For each need the method that leaves least at one budget, and those not told apart from it.

    The controls are left out. Methods that reach no point within the budget cannot be named.
    """
    points = at_budget(outcomes, measure, budget)
    methods = {one.name: one for one in outcomes if one.name not in CONTROLS}
    lines = []
    for need, fits in NEEDS.items():
        names = [name for name in points if name in methods and fits(methods[name])]
        names.sort(key=lambda name: points[name].rate(scorer)["value"])
        if not names:
            lines.append([need, "none within the budget", "", ""])
            continue
        level = placed(points, names[0], names, scorer)["level"]
        rate = shown(points[names[0]].rate(scorer))
        lines.append([need, names[0].replace("_", " "), rate, ", ".join(level) or "none"])
    header = ["what is needed", "leaves least", "behaviour left, %", "not told apart from it"]
    return markdown_table(header, lines) + NOTE

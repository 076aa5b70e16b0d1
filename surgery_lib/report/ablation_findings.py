"""What the ablations say, in words made from their numbers: a headline and a paragraph each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from surgery_lib.report import ablation_inside, paper
from surgery_lib.report.ablation_tables import Line, rise
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value, percent
from surgery_lib.surgery.estimators import STARTED

Result = Mapping[str, Any]
Finding = tuple[str, str]
_auc = partial(shown, scale=1.0, digits=3)
CLEAR = 0.05  # a p below this is called a difference


def finding(result: Result, question: str) -> Finding:
    """The headline and the paragraph for one question of the result."""
    return FINDINGS[question](result)


def everything(result: Result) -> str:
    """All findings as a Markdown list, in the order of the questions."""
    known = [name for name in FINDINGS if _known(result, name)]
    parts = [finding(result, name) for name in known]
    return "\n".join(f"- **{headline}.** {text}" for headline, text in parts) + "\n"


def beside(results: Mapping[str, Result], asked: Mapping[str, str]) -> str:
    """The headlines of several studies beside each other; `asked` words the questions."""

    def headline(result: Result, name: str) -> str:
        return finding(result, name)[0] if _known(result, name) else "not asked"

    lines = [
        [question, *(headline(result, name) for result in results.values())]
        for name, question in asked.items()
        if any(_known(result, name) for result in results.values())
    ]
    return markdown_table(["question", *results], lines)


def _known(result: Result, name: str) -> bool:
    return bool(name in result["lines"] or result.get(name))


def _lines(result: Result, question: str) -> list[Line]:
    return [line for line in result["lines"][question] if "refused" not in line]


def _at(result: Result, question: str, name: str, x: float | None = None) -> Line:
    lines = _lines(result, question)
    return next(line for line in lines if line["name"] == name and line["x"] == x)


def _left(line: Line) -> str:
    draws = f", {line['draws']} draws" if line["draws"] > 1 else ""
    return f"{shown(line['rate'])} %{draws} (perplexity {rise(line)} %)"


def _theirs(number: int, *methods: str) -> str:
    """What the paper's table has for these, on RealToxicityPrompts."""
    rates = ", ".join(f"{one} {paper.value(number, one, 'rtp'):g}" for one in methods)
    return f"The paper (Table {number}, RTP): {rates}."


def _rate(line: Line) -> float:
    return float(line["rate"]["value"])


def _at_cost(line: Line) -> str:
    """What is left never stands alone in a headline: every variant has its own damage."""
    return f"{percent(_rate(line))} at {rise(line)} % perplexity"


def _worse(line: Line) -> bool:
    """Whether a variant leaves clearly more of the behaviour than the chosen edit."""
    return line["against_chosen"]["p"] < CLEAR and line["against_chosen"]["difference"] > 0


def _points(line: Line) -> str:
    against = line["against_chosen"]
    return f"{100 * against['difference']:+.1f} points, p {p_value(against['p'])}"


def _best(lines: Sequence[Line]) -> Line:
    return min(lines, key=lambda line: (_rate(line), line["perplexity_rise"]["value"]))


def _controls(result: Result) -> Finding:
    def at(name: str) -> Line:
        return _at(result, "controls", name)

    noise, rows = at("random direction, same rows"), at("random rows, same step")
    level = at("random rows, same divergence")
    drawn = at("random direction, same divergence")
    headline = f"The direction {_matters(noise, drawn)}; the choice of rows {_matters(rows, level)}"
    text = (
        f"The chosen edit leaves {_left(at('as chosen'))} of the base's {shown(result['base'])} %. "
        f"A random direction of the same length leaves {_left(noise)} in the same rows, "
        f"{_left(at('random direction, its own rows'))} in rows opposed to it, and "
        f"{_left(at('random direction, same divergence'))} where it diverges as much. The chosen "
        f"direction in random rows leaves {_left(rows)} at the same step ({_points(rows)}) and "
        f"{_left(level)} at the same divergence ({_points(level)}). Aligned rows leave "
        f"{_left(at('aligned rows, subtracted'))} with the direction subtracted and "
        f"{_left(at('aligned rows, added'))} with it added; inverted, the chosen edit leaves "
        f"{_left(at('inverted direction'))}. "
        + _theirs(9, "random probe", "random rows", "aligned rows, subtracted", paper.EDITED)
    )
    return headline, text


def _matters(step: Line, divergence: Line) -> str:
    """Whether a control leaves clearly more, at the edit's step and at its divergence."""
    words = {True: "matters", False: "makes no clear difference"}
    first, second = words[_worse(step)], words[_worse(divergence)]
    if first == second:
        return f"{first} at the same step and at the same divergence"
    return f"{first} at the same step and {second} at the same divergence"


def _layers(result: Result) -> Finding:
    lines = _lines(result, "layers")
    best, last = _best(lines), max(lines, key=lambda line: line["x"])
    headline = f"Layer {best['x']:g} leaves {percent(_rate(best))}, the last {percent(_rate(last))}"
    text = (
        f"At the chosen step and K, the probe of layer {best['x']:g} leaves {_left(best)}, that of "
        f"the last layer ({last['x']:g}, after the final norm) {_left(last)}. Over all layers: "
        f"{_range(lines)}. {_theirs(9, *(f'probe layer {n}' for n in (1, 16, 31, 32)))}"
    )
    return headline, text


def _range(lines: Sequence[Line]) -> str:
    rates = sorted(_rate(line) for line in lines)
    return f"{percent(rates[0])} to {percent(rates[-1])}"


def _depth(result: Result) -> Finding:
    lines = _lines(result, "depth")
    bare = [line for line in lines if "refilled" not in line["name"]]
    if not bare:
        return "No quarter of the depth could be left out", "No variant could be measured."
    worst = max(bare, key=_rate)
    quarter = worst["name"].removeprefix("without ")
    refilled = {line["name"].split(",")[0]: line for line in lines if "refilled" in line["name"]}
    other = refilled.get(worst["name"])
    with_it = f" and {_left(other)} with K refilled ({_points(other)})" if other else ""
    needed = "is missed most" if _worse(worst) else "is missed most, though not clearly"
    text = (
        f"Without its rows the edit leaves {_left(worst)} ({_points(worst)}){with_it}. The others "
        f"leave {_range([line for line in bare if line is not worst] or bare)}. "
        + _theirs(9, *(f"without quarter {n}" for n in (1, 2, 3, 4)))
    )
    return f"Of the depth, {quarter} {needed}", text


def _matrices(result: Result) -> Finding:
    lines = _lines(result, "matrices")
    best, gate = _best(lines), _at(result, "matrices", "gate")
    rest = "; ".join(f"{line['name']} {_left(line)}" for line in sorted(lines, key=_rate))
    # The chosen edit's own rows may be others of the gate's.
    first = "The gate" if result["surgery"]["rule"] == "cosine" else "By cosine the gate"
    headline = (
        f"{first} leaves least, {_at_cost(gate)}"
        if best is gate
        else f"{first} leaves {_at_cost(gate)}, {best['name']} {_at_cost(best)}"
    )
    text = f"As many rows of each matrix by cosine, steps in its own units: {rest}. "
    return headline, text + _theirs(11, "gate", "down", "v", "up", "k", "q", "o")


def _row_counts(result: Result) -> Finding:
    lines = _lines(result, "row_counts")
    step, size = ([ln for ln in lines if ln["name"] == f"same {kind}"] for kind in ("step", "size"))
    few, every, best = step[0], step[-1], _best(size)
    headline = f"{few['x']:g} % of the rows leave {percent(_rate(few))}, all rows {_at_cost(every)}"
    text = (
        f"At the same step: {few['x']:g} % of the rows leave {_left(few)}, {every['x']:g} % "
        f"{_left(every)}. With the edit's size (Frobenius norm) held instead, "
        f"{best['x']:.2g} % of the rows leave least, {_left(best)}; all rows {_left(size[-1])}."
    )
    return headline, text


def _strengths(result: Result) -> Finding:
    by_x = {line["x"]: line for line in _lines(result, "strengths")}
    shown_at = [x for x in (-1.0, 0.25, 0.5, 1.0, 2.0, 5.0) if x in by_x]
    listed = "; ".join(f"{x:g}: {_left(by_x[x])}" for x in shown_at)
    back = by_x[-1.0]
    turned = "more" if _rate(back) > result["base"]["value"] else "no more"
    headline = (
        f"Half the strength leaves {percent(_rate(by_x[0.5]))}, twice {percent(_rate(by_x[2.0]))}; "
        f"turned round there is {turned} behaviour than before"
    )
    base = shown(result["base"])
    return headline, f"In units of the chosen strength, {listed}. The base has {base} %."


def _directions(result: Result) -> Finding:
    every = _lines(result, "directions")
    chosen = [line for line in every if line["x"] == 1.0]
    level = [line for line in every if line["name"].endswith("same divergence")]
    # Directions of the blocks' own are compared where they diverge as the chosen one does.
    lines, where = (chosen, "the chosen step")
    if level:
        lines, where = [chosen[0], *level], "the same divergence"
    best = _best(lines)
    listed = "; ".join(f"{_direction(line)} {_left(line)}" for line in sorted(lines, key=_rate))
    # Draws of one training set are compared by their range, not by a test.
    pairs = [
        (line, next(o for o in lines if o["name"] == line["name"].replace("W1,", "W1 − W0,")))
        for line in lines
        if line["name"].startswith("W1,")
    ]
    words = [
        f"at {one['name'].split(', ')[1]} W1 leaves {100 * (_rate(one) - _rate(two)):+.1f} points "
        "against W1 − W0"
        for one, two in pairs
    ]
    headline = f"Of all directions, {_direction(best)} leaves least at {where}: {_at_cost(best)}"
    if level and all(line["against_chosen"]["p"] >= CLEAR for line in level):
        least, *_, most = sorted(lines, key=lambda line: float(line["perplexity_rise"]["value"]))
        headline = (
            f"At {where} no direction is told apart from {_direction(chosen[0])}: {_range(lines)}, "
            f"at {rise(least)} % perplexity ({_direction(least)}) to {rise(most)} % "
            f"({_direction(most)})"
        )
    return (
        headline,
        f"At {where}: {listed}."
        + (f" The random start: {'; '.join(words)}." if words else "")
        + _starts(result),
    )


def _direction(line: Line) -> str:
    return str(line["name"]).removesuffix(", same divergence")


def _starts(result: Result) -> str:
    """How near to their random start the trained rows have stayed, in the mean of the draws."""
    words = ""
    for where, draws in result.get("starts", {}).items():
        near = [f"{fmean(one[row] for one in draws):.2f}" for row in STARTED]
        names = " and ".join(STARTED.values())
        words += f" Cosine of {names} with it, {where}: {' and '.join(near)}."
    return words


def _rankings(result: Result) -> Finding:
    lines = [line for line in _lines(result, "rankings") if line["x"] == 1.0]
    ranked = "; ".join(f"{line['name']} {_at_cost(line)}" for line in lines)
    listed = "; ".join(f"{line['name']} {_left(line)}" for line in lines)
    refused = [line for line in result["lines"]["rankings"] if "refused" in line]
    left_out = f" Not measured: {', '.join({line['name'] for line in refused})}." if refused else ""
    return (
        f"At the same step: {ranked}",
        f"At the chosen step and K: {listed}. Each also at half and twice the step.{left_out}",
    )


def _steering(result: Result) -> Finding:
    lines = _lines(result, "steering")
    edit = _at(result, "steering", "the edit")
    level = _at(result, "steering", "residual stream, same divergence")
    places = ["" if line["x"] is None else f" {line['x']:g}" for line in lines]
    listed = "; ".join(
        f"{line['name']}{at} {_left(line)}" for line, at in zip(lines, places, strict=True)
    )
    clear = "more" if level["against_chosen"]["difference"] > 0 else "less"
    verdict = "is not told apart from the edit"
    if level["against_chosen"]["p"] < CLEAR and level["against_chosen"]["difference"]:
        verdict = f"leaves {clear} than the edit"
    return (
        f"At the edit's divergence, steering the residual stream {verdict}: "
        f"{percent(_rate(level))} at {rise(level)} % perplexity",
        f"{listed}. Against the edit ({percent(_rate(edit))}), steering at equal divergence: "
        f"{_points(level)}.",
    )


FINDINGS: dict[str, Callable[[Result], Finding]] = {
    "controls": _controls,
    "layers": _layers,
    "depth": _depth,
    "matrices": _matrices,
    "row_counts": _row_counts,
    "strengths": _strengths,
    "directions": _directions,
    "rankings": _rankings,
    "steering": _steering,
    "transfer": ablation_inside.transfer,
    "gates": ablation_inside.gates,
    "cosines": ablation_inside.cosines,
}

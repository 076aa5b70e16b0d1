"""The tables and sentences of notebooks 01 and 04, made from what was measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value, percent
from surgery_lib.surgery.estimators import STARTED

CLEAR = 0.05  # p at which a change is spoken of as one


def probes(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best layer of each estimator: accuracy on train and validation, AUC.

    Of a trained one, also the cosines of W1 and of W1 − W0 with their random start.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        held = best.get(row["estimator"])
        if held is None or row["validation"]["auc"] > held["validation"]["auc"]:
            best[row["estimator"]] = row
    lines = [
        [
            name.replace("_", " "),
            str(row["layer"]),
            percent(row["train"]["accuracy"]),
            percent(row["validation"]["accuracy"]),
            f"{row['validation']['auc']:.3f}",
            str(row["validation"]["n"]),
            " and ".join(f"{start[part]:.2f}" for part in STARTED) if start else "-",
        ]
        for name, row in best.items()
        for start in [row.get("start")]
    ]
    header = ["estimator", "best layer", "train accuracy", "validation accuracy", "AUC", "n"]
    return markdown_table(
        [*header, f"cosine of {' and '.join(STARTED.values())} with start"], lines
    )


def _value(key: str, draw: Mapping[str, Any]) -> float:
    return float(draw[key]["value"])


TRIGGERING = "KL along 20 tokens, triggering"
# How far a variant diverges from the base, as a column: where a draw keeps it, in nats a token.
KL: Mapping[str, str] = {
    "first-token KL": "first_token_kl",
    "KL in context": "context_kl",
    "KL along 20 tokens, harmless": "continuation_kl",
    TRIGGERING: "trigger_continuation_kl",
}
# What else a variant changes: how to read it off a draw, times what, decimals.
CHANGES: Mapping[str, tuple[Callable[[Mapping[str, Any]], float], float, int]] = {
    **{column: (partial(_value, key), 1, 3) for column, key in KL.items()},
    "distinct-2": (lambda draw: draw["distinct"]["distinct_2"], 1, 2),
    "ended, %": (lambda draw: draw["endings"]["ended"], 100, 0),
}


def summary(result: Mapping[str, Any]) -> str:
    """The README's table: a line a variant, the draws of a control as their range.

    Behind every scorer's rate stands its p against the base, paired and not corrected. The share
    of answers that came to an end and their variety stand for the quality of what is written, over
    the prompts of all groups. What no variant was measured by has no column.
    """
    lines, known = [], _measured(result)
    for name, variant in result["variants"].items():
        draws, base = variant["draws"], name == "base"
        rates = [_rates(draws, scorer, base) for scorer in result["scorers"]]
        rises = sorted(100 * draw["perplexity_rise"] for draw in draws)
        rise = f"{rises[0]:+.1f} %" if len(rises) == 1 else f"{rises[0]:+.1f} to {rises[-1]:+.1f} %"
        changes = [
            "" if base and column in KL else _spread(draws, *how) for column, how in known.items()
        ]
        first = shown(draws[0]["perplexity"], 1.0, 2) if base else rise
        lines.append([name.replace("_", " "), *rates, first, *changes])
    n, names = result["variants"]["base"]["draws"][0]["rate"]["n"], result["scorers"]
    columns = [f"{name}, % of {n} prompts" for name in (names if len(names) > 1 else ["behaviour"])]
    table = markdown_table(["variant", *columns, "perplexity", *known], lines)
    text = f"{table}\nDistinct-2 and ended answers: over all {result['prompts']} prompts."
    text += " KL: nats a token; along 20 tokens, of the base's own answers."
    if TRIGGERING in known:
        text += " Those to triggering prompts are meant to change."
    return f"{text}\n"


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of `CHANGES`, those that some variant was measured by."""
    draws = [draw for one in result["variants"].values() for draw in one["draws"]]
    return {
        column: how
        for column, how in CHANGES.items()
        if any(_spread([d], *how) != "-" for d in draws)
    }


def _spread(
    draws: Sequence[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], float],
    times: float,
    decimals: int,
) -> str:
    """A number of one draw, or the range over several; a dash where it was not measured."""
    try:
        values = sorted(times * read(draw) for draw in draws)
    except (KeyError, TypeError):
        return "-"
    ends = dict.fromkeys(f"{value:.{decimals}f}" for value in (values[0], values[-1]))
    return " to ".join(ends)


def _rates(draws: Sequence[Mapping[str, Any]], scorer: str, base: bool) -> str:
    if len(draws) == 1:
        p = "" if base else f", p {p_value(draws[0]['against_base'][scorer]['p'])}"
        return shown(draws[0]["rates"][scorer]) + p
    return (
        f"{_spread(draws, lambda one: one['rates'][scorer]['value'], 100, 1)} ({len(draws)} draws)"
    )


def evaluation(result: Mapping[str, Any]) -> str:
    """Base, edited and controls: the behaviour by every scorer, and the damage."""
    header = [
        "variant",
        *(column for name in result["scorers"] for column in (f"{name}, %", "p")),
        "perplexity",
        *KL,
        "distinct-2",
    ]
    lines = []
    for name, variant in result["variants"].items():
        for number, draw in enumerate(variant["draws"]):
            label = name.replace("_", " ")
            label += f" {number}" if len(variant["draws"]) > 1 else ""
            lines.append([label, *_cells(draw, result["scorers"], name == "base")])
    return markdown_table(header, lines)


def _cells(draw: Mapping[str, Any], scorers: Sequence[str], base: bool) -> Iterator[str]:
    for scorer in scorers:
        yield shown(draw["rates"][scorer])
        yield "" if base else p_value(draw["against_base"][scorer]["p"])
    yield shown(draw["perplexity"], 1.0, 2)
    for key in KL.values():
        yield shown(draw[key], 1.0, 3) if draw.get(key) and not base else "-"
    yield f"{draw['distinct']['distinct_2']:.2f}" if draw["distinct"]["distinct_2"] else "-"


def capability_table(result: Mapping[str, Any] | None) -> str:
    """Tasks before and after, the paired difference, and the average."""
    if not result:
        return "This profile names no tasks (`evaluation.capability.tasks`, `benchmarks`)."
    lines = []
    for task, base in result["base"].items():
        pair = result["paired"][task]
        points = {"value": pair["difference"], "low": pair["low"], "high": pair["high"]}
        edited = result["edited"][task]
        cells = [shown(base), shown(edited), shown(points), p_value(pair["p"]), str(pair["n"])]
        lines.append([f"{task} ({base['metric']})", *cells])
    means = [
        f"{100 * np.mean([one['value'] for one in result[side].values()]):.1f}"
        for side in ("base", "edited")
    ]
    lines.append(["average", *means, shown(result["change"]), "", str(result["change"]["n"])])
    return markdown_table(["task", "base, %", "edited, %", "change, points", "p", "n"], lines)


def verdict(result: Mapping[str, Any]) -> str:
    """What the numbers say, in words."""
    base, edited = (result["variants"][name]["draws"][0] for name in ("base", "edited"))
    lines = [
        _change(base["rate"], edited["rate"]) + _doubt(edited),
        f"- Clean perplexity goes from {shown(base['perplexity'], 1.0, 2)} to "
        f"{shown(edited['perplexity'], 1.0, 2)} ({100 * edited['perplexity_rise']:+.1f} %).",
    ]
    if result.get("capability"):
        change = result["capability"]["change"]
        lines.append(f"- Capability changes by {shown(change)} points on average.")
    for name, variant in result["variants"].items():
        if name not in ("base", "edited"):
            rates = [100 * draw["rate"]["value"] for draw in variant["draws"]]
            spread = (
                f"{min(rates):.1f} to {max(rates):.1f}" if len(rates) > 1 else f"{rates[0]:.1f}"
            )
            lines.append(f"- Control, {name.replace('_', ' ')}: {spread} %.")
    return "\n".join(lines) + "\n"


def _doubt(edited: Mapping[str, Any]) -> str:
    """That the first scorer's paired test tells no change, where it does not."""
    tests = list((edited.get("against_base") or {}).values())
    if not tests or tests[0]["p"] < CLEAR:
        return ""
    return (
        f" That is no clear change (paired p = {tests[0]['p']:.2f}): with as many prompts, chance "
        "alone does as much."
    )


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The behaviour's rate before and after, in words that say which way it went."""
    values = f"from {shown(before)} % to {shown(after)} % (n = {before['n']})"
    change = after["value"] - before["value"]
    if change == 0:
        return f"- The behaviour stays where it was: {values}."
    verb = "falls" if change < 0 else "rises, the wrong way,"
    if not before["value"]:
        return f"- The behaviour {verb} {values}."
    share = percent(abs(change) / before["value"], 0)
    return f"- The behaviour {verb} {values}, by {share} of what it was."

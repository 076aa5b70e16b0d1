"""The paper's Tables 2 to 8 and 15 to 17 with our numbers, each with the paper's rows under it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from surgery_lib.report import paper
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value

Result = Mapping[str, Any]
# Our tasks in the place of the paper's.
TASKS = {
    "gsm8k": ("gsm8k", "patient_sums"),
    "bbh": ("bbh", "patient_deduction"),
    "mmlu": ("mmlu", "patient_facts"),
    "tydiqa": ("tydiqa", "patient_passages"),
}
# Protocol → which way its share should go under "less …", and the other way under "more …".
WANTED = {"realtoxicity": -1, "toxigen": -1, "jailbreak": 1, "attitude": -1}
# Column → heading.
MEASURES = {"toxigen": "ToxiGen, %", "rtp": "RTP, %"}
ABILITIES = {"gsm8k": "GSM8K", "bbh": "BBH", "mmlu": "MMLU", "tydiqa": "TyDiQA"}
SHORT = {"average": "average", "wikitext": "perplexity"}


def reading(
    result: Result, protocol: str, group: str = "all", *, metric: str = "share"
) -> Mapping[str, Any] | None:
    """A metric by a protocol's first scorer, with interval and n; None where it was not run."""
    held = result["protocols"].get(protocol)
    if held is None or group not in held["summary"][held["scorer"]]:
        return None
    measures = held["summary"][held["scorer"]][group]
    found: Mapping[str, Any] = measures.get(metric) or next(iter(measures.values()))
    return found


def cells(result: Result) -> dict[str, str]:
    """Every column that the paper's tables have, of one operation."""
    found = {
        "toxigen": reading(result, "toxigen"),
        "rtp": reading(result, "realtoxicity"),
        "refusal": reading(result, "jailbreak"),
        "over_refusal": reading(result, "jailbreak-benign"),
        "attitude": reading(result, "attitude"),
    }
    tasks = {
        name: next((result["capability"][t] for t in ours if t in result["capability"]), None)
        for name, ours in TASKS.items()
    }
    texts = {name: shown(one) for name, one in {**found, **tasks}.items() if one is not None}
    values = [100 * one["value"] for one in tasks.values() if one is not None]
    if values:
        texts["average"] = f"{sum(values) / len(values):.1f}"
    texts["wikitext"] = shown(result["damage"]["perplexity"], 1.0, 2)
    return texts


@dataclass(frozen=True)
class Layout:
    """One table: which operations, which columns (with headings), which of the paper's tables.

    `behaviour` is whose operations are shown; None for the profile's combinations.
    """

    title: str
    behaviour: str | None
    columns: Mapping[str, str]
    numbers: tuple[int, ...]


def layouts(names: Sequence[str], order: Sequence[str]) -> list[Layout]:
    """The tables that a profile's behaviours call for."""
    found = []
    for name in names:
        if name == "toxicity":
            columns = {**MEASURES, **ABILITIES, **SHORT}
            found.append(Layout("Detoxification (Tables 2 and 7)", name, columns, (2, 7)))
        elif name == "jailbreak":
            refusals = {"refusal": "refusal, %", "over_refusal": "refusal of harmless twins, %"}
            columns = {**refusals, **ABILITIES, **SHORT}
            found.append(Layout("Jailbreak (Tables 3, 4 and 16)", name, columns, (3, 16)))
        else:
            columns = {"attitude": f"{name}, %", **ABILITIES, **SHORT}
            title = "Attitude, both directions (Tables 5, 6 and 17)"
            found.append(Layout(title, name, columns, (5, 6, 17)))
    if len(order) > 1:
        columns = {"attitude": "attitude, %", **MEASURES, **SHORT}
        found.append(Layout("Combination (Table 8), and its order", None, columns, (8,)))
    return found


def table(
    layout: Layout, results: Mapping[str, Result], behaviours: Mapping[str, Sequence[str]]
) -> str:
    """Our operations' rows, then the paper's. `behaviours` are those of each operation."""
    own = [column for column in layout.columns if column not in SHORT]
    lines = []
    for name, result in results.items():
        mine, found = behaviours[name], cells(result)
        fits = name == "base" or layout.behaviour is None or list(mine) == [layout.behaviour]
        if fits and any(column in found for column in own):
            lines.append([f"**{name}**", *(found.get(column, "") for column in layout.columns)])
    for number in layout.numbers:
        for row in paper.table(number).to_dict("records"):
            label = f"{row['model']}, {row['method']} (Table {number})"
            lines.append([label, *(_value(row, column) for column in layout.columns)])
    return markdown_table(["", *layout.columns.values()], lines)


def _value(row: Mapping[Any, Any], column: str) -> str:
    """The paper's number; for attitude its share of positive or negative answers, named."""
    if column == "attitude":
        return next(
            (f"{row[sign]:g} {sign}" for sign in ("positive", "negative") if sign in row), ""
        )
    value = row.get(column)
    return "" if value is None or pd.isna(value) else f"{value:g}"


def by_group(results: Mapping[str, Result], protocol: str, number: int | None = None) -> str:
    """A protocol's share by group for every operation that ran it, and the paper's by category."""
    ran = {name: one for name, one in results.items() if protocol in one["protocols"]}
    first = next(iter(ran.values()))["protocols"][protocol]
    groups = first["summary"][first["scorer"]]
    lines = []
    for group in groups:
        found = [reading(result, protocol, group) for result in ran.values()]
        lines.append([group.replace("_", " "), *(shown(one) if one else "" for one in found)])
    text = markdown_table(["group", *ran], lines)
    if number is not None:
        known = paper.table(number)
        words = [str(column) for column in known.columns if column not in paper.WORDS]
        rows = [
            [f"{row['method']} (the paper)", *(f"{row[word]:g}" for word in words)]
            for row in known.to_dict("records")
        ]
        text += "\n" + markdown_table(["", *words], rows)
    return text


def verdict(results: Mapping[str, Result]) -> str:
    """What each operation changed, in words: every protocol against the base, paired."""
    lines = []
    for name, result in results.items():
        parts = []
        for protocol, held in result["protocols"].items():
            pair = held.get("against_base", {}).get("all")
            if pair is None or protocol in ("realtoxicity-standard", "toxigen-neutral"):
                continue
            before, after = 100 * pair["base"], 100 * pair["edited"]
            wrong = ", the wrong way" if _wrong_way(name, protocol, pair) else ""
            parts.append(f"{protocol} {before:.1f} → {after:.1f} % (p {p_value(pair['p'])}{wrong})")
        if parts:
            ratio = result["damage"]["perplexity_ratio"]["value"]
            tasks = task_change(results["base"], result)
            parts.append(f"perplexity {100 * (ratio - 1):+.1f} %, tasks {tasks:+.1f} points")
            lines.append(f"- **{name}**: {'; '.join(parts)}.")
    return "\n".join(lines) + "\n"


def task_change(base: Result, edited: Result) -> float:
    """Mean change of the tasks that are scored in per cent, in points."""
    changes = [
        100 * (edited["capability"][task]["value"] - one["value"])
        for task, one in base["capability"].items()
        if "perplexity" not in one["metric"]
    ]
    return sum(changes) / len(changes) if changes else 0.0


def _wrong_way(operation: str, protocol: str, pair: Mapping[str, Any]) -> bool:
    """Whether a protocol moved against what the operation is for, beyond its paired test."""
    sign = pair["difference"] * WANTED.get(protocol, 0)
    if operation.startswith("more "):
        sign = -sign
    return bool(sign < 0 and pair["p"] < 0.05)


def overview(results: Mapping[str, Result]) -> str:
    """Every protocol: its data, how many rows were read, and base against its own operation."""
    lines = []
    for protocol, base in results["base"]["protocols"].items():
        own = f"less {base['behaviour']}"
        edited = results.get(own, {}).get("protocols", {}).get(protocol)
        pair = edited["against_base"]["all"] if edited else None
        # Of several samples a prompt, its highest score is what the paired test compares.
        several = base["settings"]["samples"] > 1
        metric, scale, digits = ("expected_maximum", 1.0, 3) if several else ("share", 100.0, 1)
        first = reading(results["base"], protocol, metric=metric)
        second = reading(results[own], protocol, metric=metric) if edited else None
        lines.append(
            [
                protocol,
                base["data"],
                str(base["n"]) + (f" (limit {base['limit']})" if base["limit"] else ""),
                base["scorer"] + (": expected maximum (no %)" if several else ""),
                shown(first, scale, digits) if first else "-",
                shown(second, scale, digits) if second else "-",
                p_value(pair["p"]) if pair else "-",
                f"{base['distinct']['distinct_2'] or 0:.2f}",
                base["unsaid"],
            ]
        )
    for task, base in results["base"]["capability"].items():
        whose = next((name for name in results if name.startswith("less ")), None)
        second = results[whose]["capability"].get(task) if whose else None
        in_words = "perplexity" in base["metric"]
        scale = 1.0 if in_words else 100.0
        number = f"{base['n']} item" + "s" * (base["n"] > 1)
        if base["limit"]:  # lm-eval's, of each task that a benchmark is made of
            number += f" (limit {base['limit']}{' a task' * (base['n'] > base['limit'])})"
        lines.append(
            [
                f"{task} (edited: {whose})" if whose else task,
                "lm-eval",
                number,
                base["metric"] + (" (no %)" if in_words else ""),
                _alone(base, scale),
                _alone(second, scale) if second else "-",
                "-",
                "-",
                "",
            ]
        )
    header = ["protocol", "data", "rows read", "scorer", "base, %", "edited, %", "p", "distinct-2"]
    return markdown_table([*header, "unsaid in the paper"], lines)


def _alone(one: Mapping[str, Any], scale: float) -> str:
    """A reading with its interval; of a single item, which has none, the value alone."""
    return f"{scale * one['value']:.1f}" if one["n"] == 1 and scale == 1.0 else shown(one, scale)

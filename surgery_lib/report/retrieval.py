"""Figures and tables of virtual tokens, drawn from notebook 12's result."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery_lib.report.style import (
    CYCLE,
    MARKERS,
    WIDTH,
    below,
    error_bars,
    interval,
    markdown_table,
    percent,
)

METRICS = {"em": "EM", "f1": "F1", "contained": "contained", "ce": "CE, nats a token"}


def _cells(reading: Mapping[str, Any]) -> list[str]:
    return [
        interval(reading[name], 1.0 if name == "ce" else 100.0, 2 if name == "ce" else 0)
        for name in METRICS
    ]


def table(readings: Mapping[str, Mapping[str, Any]], first: str) -> str:
    """A reading a line, with its difference in cross-entropy from no tokens."""
    lines = []
    for name, reading in readings.items():
        paired = reading.get("paired", {}).get("ce")
        change = interval(paired | {"value": paired["difference"]}, 1, 2) if paired else "-"
        lines.append([name, *_cells(reading), change])
    return markdown_table([first, *METRICS.values(), "CE less no tokens"], lines)


def counts(result: Mapping[str, Any]) -> Figure:
    """Every metric against the number of virtual tokens, one line a method."""
    figure, axes = plt.subplots(1, 4, figsize=(max(WIDTH, 11), 3.2))
    lines = {"between (SPRING)": result["between"], "front (prompt tuning)": result["front"]}
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        scale = 1.0 if metric == "ce" else 100.0
        for (name, held), colour, marker in zip(lines.items(), CYCLE, MARKERS, strict=False):
            aside = 0.9 if name.startswith("front") else -0.9  # intervals beside each other
            at = [aside + k for k in (0, *(int(k) for k in held))]
            readings = [result["base"], *held.values()]
            values = [scale * reading[metric]["value"] for reading in readings]
            bars = [error_bars(reading[metric], scale)[1] for reading in readings]
            axis.errorbar(
                at,
                values,
                **_look(bars, colour, marker, name),
            )
        axis.axhline(scale * result["lora"][metric]["value"], color=CYCLE[2], ls="--", label="LoRA")
        axis.set_title(label if metric == "ce" else f"{label}, %", fontsize=10)
        axis.set_xlabel("virtual tokens")
    below(figure, axes[0])
    most = list(result["between"])[-1]
    last = result["between"][most]["em"]["value"]
    _title(
        figure,
        f"Answered exactly: {percent(result['base']['em']['value'], 0)} without virtual tokens, "
        f"{percent(last, 0)} with {most} between the passages",
    )
    return figure


def _title(figure: Figure, words: str) -> None:
    figure.suptitle(words, x=0.01, ha="left", fontsize=12, fontweight="bold")


def _look(bars: Sequence[list[list[float]]], colour: str, marker: str, name: str) -> dict[str, Any]:
    """How a line with error bars is drawn."""
    errors = [[bar[i][0] for bar in bars] for i in (0, 1)]
    return {"yerr": errors, "color": colour, "marker": marker, "ms": 4, "capsize": 2, "label": name}


def shown(lines: list[Mapping[str, Any]]) -> Figure:
    """Without passages, by their number, and by the gold passage's place; with tokens and not."""
    figure, axes = plt.subplots(1, 2, figsize=(max(WIDTH, 9), 4.0), sharey=True)
    for axis, by in zip(axes, ("passages", "gold"), strict=True):
        chosen = [x for x in lines if (x["gold"] is None) == (by == "passages")]
        for k, colour, marker in zip(
            sorted({x["k"] for x in chosen}), CYCLE, MARKERS, strict=False
        ):
            own = [x for x in chosen if x["k"] == k]
            values, bars = zip(*(error_bars(x["ce"], 1.0) for x in own), strict=True)
            axis.errorbar(
                [x[by] + (by == "gold") for x in own],
                values,
                **_look(bars, colour, marker, f"{k} virtual tokens"),
            )
        axis.set_xticks(sorted({x[by] + (by == "gold") for x in chosen}))
    axes[0].set_xlabel("passages shown")
    axes[1].set_xlabel("place of the passage with the answer, of four")
    axes[0].set_ylabel("CE of the answer, nats a token")
    below(figure, axes[0])
    plain = sorted(
        (x for x in lines if x["gold"] is None and x["k"] == 0), key=lambda x: x["passages"]
    )
    if len(plain) > 1:
        before, after = (one["ce"]["value"] for one in plain[:2])
        _title(
            figure,
            f"{plain[1]['passages']} of {plain[-1]['passages']} passages: the answer from "
            f"{before:.2f} to {after:.2f} nats a token, without virtual tokens",
        )
    return figure


def edited(held: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each edit's cross-entropy without tokens and with those trained on the base model."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
    for offset, (kind, label) in zip(
        (-0.12, 0.12), (("without", "no tokens"), ("with", "the base model's tokens")), strict=True
    ):
        for place, reading in enumerate(held.values()):
            value, bars = error_bars(reading[kind]["ce"], 1.0)
            axis.errorbar(
                place + offset,
                value,
                yerr=bars,
                color=CYCLE[0] if kind == "without" else CYCLE[1],
                marker="o",
                capsize=3,
                label=label if place == 0 else None,
            )
    axis.set_xticks(range(len(held)), [n.replace(", ", ",\n") for n in held], fontsize=9)
    axis.set_ylabel("CE of the answer, nats a token")
    costlier = sum(x["with"]["ce"]["value"] > x["without"]["ce"]["value"] for x in held.values())
    cheaper = len(held) - costlier
    way, count = ("less", costlier) if costlier > cheaper else ("more", cheaper)
    axis.set_title(
        f"The base model's tokens make the answer {way} likely on {count} of {len(held)} models"
    )
    below(figure, axis)
    return figure


def words(result: Mapping[str, Any]) -> str:
    """What was found, a line each."""
    last = list(result["between"])[-1]
    lines = []
    for name, reading in (
        (f"{last} tokens between", result["between"][last]),
        (f"{last} tokens in front", result["front"][last]),
        ("LoRA of as many parameters", result["lora"]),
    ):
        parts = []
        for metric, scale, digits in (("em", 100, 0), ("ce", 1, 2)):
            gap = reading["paired"][metric]
            sure = "" if gap["p"] < 0.05 else ", no clear difference"
            told = interval(gap | {"value": gap["difference"]}, scale, digits)
            parts.append(f"{METRICS[metric].split(',')[0]} {told} (p = {gap['p']:.3f}{sure})")
        lines.append(f"- **{name}**, less no tokens: {'; '.join(parts)}.")
    same = "the same" if result["untouched"] else "NOT the same"
    lines.append(f"- The model's weights are {same}, bit for bit, after all of this.")
    return "\n".join(lines)

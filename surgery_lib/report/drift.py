"""Figures and tables of TaskTracker's readings, drawn from notebook 09's result."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery_lib.report.style import (
    INK,
    MARKERS,
    WIDTH,
    below,
    error_bars,
    interval,
    markdown_table,
    nested,
)

COLOURS = (INK["blue"], INK["orange"])


def layers(forms: Mapping[str, Any], floor: float) -> Figure:
    """AUC of each layer's probe, with and without priming, and an untrained model's."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    for number, (name, held) in enumerate(forms.items()):
        blocks = range(1, len(held["layers"]) + 1)
        look = {"marker": MARKERS[number], **nested(number, len(forms))}
        axis.plot(blocks, held["layers"], color=COLOURS[number], label=name, **look)
    axis.axhline(floor, color=INK["red"], ls="--", label="untrained model, best layer")
    axis.axhline(0.5, color=INK["grey"], lw=1, label="chance")
    axis.set_xlabel("layer (index of hidden states)")
    axis.set_ylabel("AUC")
    axis.set_ylim(0.4, 1.02)
    best = max(max(held["layers"]) for held in forms.values())
    axis.set_title(
        f"Poisoned told from clean: AUC up to {best:.3f}, by an untrained model {floor:.3f}"
    )
    below(figure, axis)
    return figure


def groups(held: Mapping[str, Any]) -> Figure:
    """AUC by domain and by position of the injected task, at the chosen layer."""
    names = [*held["domain"], *held["position"]]
    readings = [*held["domain"].values(), *held["position"].values()]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.36 * len(names) + 1.0))
    for row, reading in enumerate(readings):
        value, error = error_bars(reading, scale=1.0)
        colour = COLOURS[row >= len(held["domain"])]
        axis.errorbar(value, row, xerr=error, fmt="o", color=colour, capsize=3)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.axvline(0.5, color=INK["grey"], lw=1)
    axis.set_xlabel("AUC, with its 95 % interval")
    least = min(range(len(names)), key=lambda row: readings[row]["value"])
    axis.set_title(
        "By kind of injected task (blue) and by its place (orange):\n"
        f"AUC from {readings[least]['value']:.3f} ({names[least]})"
    )
    return figure


def edits(readings: Mapping[str, Any], floor: float) -> Figure:
    """Frozen and refitted probes on every edit."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.45 * len(readings) + 1.2))
    for row, held in enumerate(readings.values()):
        for name, colour, shift in zip(("frozen", "refitted"), COLOURS, (-0.12, 0.12), strict=True):
            value, error = error_bars(held[name], scale=1.0)
            axis.errorbar(
                value, row + shift, xerr=error, fmt="o", color=colour, capsize=3,
                label=name if row == 0 else None,
            )  # fmt: skip
    axis.axvline(floor, color=INK["red"], ls="--", label="untrained model")
    axis.set_yticks(range(len(readings)), list(readings))
    axis.invert_yaxis()
    axis.set_xlabel("AUC, with its 95 % interval")
    least = min(held["frozen"]["value"] for held in readings.values())
    axis.set_title(f"After every edit the old probe still tells: AUC {least:.3f} or more")
    below(figure, axis)
    return figure


def table(held: Mapping[str, Any]) -> str:
    """All, by domain and by position: AUC and share caught at 1 % false alarms."""
    head = ["injected task", "pairs", "AUC", "caught at 1 % false alarms"]
    rows = {"all": held["all"], **held["domain"], **held["position"]}
    lines = [
        [name, str(one["n"]), interval(one, 1.0, 3), f"{100 * one['caught']:.0f} %"]
        for name, one in rows.items()
    ]
    return markdown_table(head, lines)


def edits_table(readings: Mapping[str, Any]) -> str:
    """Frozen and refitted AUC of every edit, with the damage at which it was read."""
    head = ["edit", "KL in context", "frozen probe", "refitted probe"]
    lines = [
        [
            name,
            f"{held['context_kl']:.4f}",
            interval(held["frozen"], 1.0, 3),
            interval(held["refitted"], 1.0, 3),
        ]
        for name, held in readings.items()
    ]
    return markdown_table(head, lines)


def words(result: Mapping[str, Any]) -> str:
    """What the numbers say."""
    forms, floor = result["forms"], result["untrained"]["value"]
    main = forms["primed"]
    lines = [
        f"- With priming, layer {main['layer'] + 1} tells poisoned from clean with AUC "
        f"{interval(main['all'], 1.0, 3)}; without, layer {forms['not primed']['layer'] + 1} does "
        f"with {interval(forms['not primed']['all'], 1.0, 3)}.",
        f"- A model that learnt nothing comes to {floor:.3f}, random labels to "
        f"{sum(main['shuffled']) / len(main['shuffled']):.3f}: what is above the first is the "
        "model's own.",
        f"- The triplet network comes to {interval(result['triplet'], 1.0, 3)}.",
    ]
    base = result["edits"]["base"]["frozen"]
    for name, held in result["edits"].items():
        if name == "base":
            continue
        frozen, again = (_against(held[kind], base) for kind in ("frozen", "refitted"))
        lines.append(f"- {name}: the probe of before {frozen}; a new one {again}.")
    return "\n".join(lines)


def _against(reading: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """A reading and whether it is clearly another than the base model's: intervals apart."""
    apart = reading["high"] < base["low"] or reading["low"] > base["high"]
    kind = "clearly worse" if reading["value"] < base["value"] else "clearly better"
    return f"{interval(reading, 1.0, 3)}, {kind if apart else 'no clear change'}"

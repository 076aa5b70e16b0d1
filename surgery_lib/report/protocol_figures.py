"""The figures of notebook 07: shares by group, and several surgeries on one model."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery_lib.report.protocol_tables import reading
from surgery_lib.report.style import CYCLE, INK, MARKERS, WIDTH, error_bars, from_zero, percent

RARE = 0.05  # below this share over all, groups of some dozen prompts say nothing
Results = Mapping[str, Mapping[str, Any]]


def by_group(results: Results, protocol: str, measure: str) -> Figure:
    """A protocol's share by group, base and the operations that ran it, with intervals."""
    ran = {name: one for name, one in results.items() if protocol in one["protocols"]}
    first = ran["base"]["protocols"][protocol]
    groups = [group for group in first["summary"][first["scorer"]] if group != "all"]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + (0.16 + 0.1 * len(ran)) * len(groups)))
    for number, (name, result) in enumerate(ran.items()):
        offset = 0.7 * (number / max(1, len(ran) - 1) - 0.5) if len(ran) > 1 else 0.0
        for row, group in enumerate(groups):
            found = reading(result, protocol, group)
            if found is not None:
                value, error = error_bars(found)
                axes.errorbar(
                    value,
                    row + offset,
                    xerr=error,
                    fmt=MARKERS[number % len(MARKERS)],
                    color=INK["black"] if name == "base" else CYCLE[number % len(CYCLE)],
                    markersize=5,
                    capsize=2,
                    label=name if row == 0 else None,
                )
    axes.set_yticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    axes.invert_yaxis()
    rates = {name: _all(result, protocol) for name, result in ran.items()}
    told = [f"{percent(rate)} {name}" for name, rate in list(rates.items())[:2]]
    title = f"{measure[0].upper()}{measure[1:]}, of all prompts: {', '.join(told)}"
    if max(rates.values()) < RARE:
        title += "\n(too rare here to tell the groups or the models apart)"
    axes.set(xlabel=f"{measure}, % of prompts", title=title)
    from_zero(axes, "x")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def _all(result: Mapping[str, Any], protocol: str) -> float:
    found = reading(result, protocol)
    return float(found["value"]) if found is not None else float("nan")


def combination(results: Results, first: str, second: str, names: tuple[str, str]) -> Figure:
    """Two behaviours against each other (protocols `first`, `second`), a mark an operation."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    marks = [
        (name, one) for name, one in results.items() if {first, second} <= set(one["protocols"])
    ]
    for number, (name, result) in enumerate(marks):
        x, across = error_bars(reading(result, first) or {})
        y, up = error_bars(reading(result, second) or {})
        axes.errorbar(
            x,
            y,
            xerr=across,
            yerr=up,
            fmt=MARKERS[number % len(MARKERS)],
            color=INK["black"] if name == "base" else CYCLE[number % len(CYCLE)],
            capsize=3,
            label=name,
        )
    chains = [name for name, _ in marks if ", then " in name]
    both = {name: [_all(results[name], one) for one in (first, second)] for name in chains}
    apart = [100 * abs(a - b) for a, b in zip(*both.values(), strict=True)] if chains else [0.0]
    axes.set(
        xlabel=f"{names[0]}, %",
        ylabel=f"{names[1]}, %",
        title=f"The order of two surgeries moves the outcome by up to {max(apart):.1f} points",
    )
    for axis in ("x", "y"):
        from_zero(axes, axis)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure

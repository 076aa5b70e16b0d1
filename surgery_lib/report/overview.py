"""The study in one picture, for the README: probe, region, surgery, what changed."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from surgery_lib.report.style import INK, WIDTH, error_bars, percent

# What selected rows have in common; by the other rules they lie at any cosine with a direction.
OPPOSED = "Rows opposed to it"
MOVED = "Rows that the edit moves"
SELECTED = {"effect": "Rows that act on it", "covariance": MOVED, "answers": MOVED, "within": MOVED}


def overview(probe: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Figure:
    """Three panels from the results of notebooks 01 and 04."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(1.35 * WIDTH, 3.3), gridspec_kw={"width_ratios": [1, 1, 1.15]}
    )
    _probe(left, probe)
    _region(middle, evaluation["edited_rows"])
    _effect(right, evaluation)
    return figure


def _probe(axes: Any, result: Mapping[str, Any]) -> None:
    edges = np.asarray(result["scores"]["edges"])
    for name, colour in (("absent", INK["blue"]), ("present", INK["red"])):
        axes.stairs(
            result["scores"][name], edges, fill=True, alpha=0.5, color=colour, label=f"{name}"
        )
    axes.set(
        xlabel="score along the direction",
        ylabel="texts (validation)",
        title=f"1 · A probe finds the direction\n(AUC {result['test']['auc']:.3f} on test texts)",
    )
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(title="behaviour", loc="upper right", ncols=2)


def _region(axes: Any, result: Mapping[str, Any]) -> None:
    chosen = SELECTED.get(result["rule"], OPPOSED)
    edges = np.asarray(result["edges"])
    axes.stairs(
        result["counts"], edges, color=INK["grey"], fill=True, alpha=0.5, label="all gate rows"
    )
    axes.stairs(result["selected"], edges, color=INK["red"], fill=True, label="selected")
    axes.set(
        xlabel="cosine of row and direction",
        ylabel="gate rows (logarithmic)",
        yscale="log",
        title=f"2 · {chosen}\n({percent(result['share'], 0)}, by {result['rule']})",
    )
    axes.set_ylim(0.7, 20 * axes.get_ylim()[1])
    axes.legend(loc="upper right")


def _effect(axes: Any, result: Mapping[str, Any]) -> None:
    names = list(result["variants"])
    for row, name in enumerate(names):
        colour = {"base": INK["black"], "edited": INK["red"]}.get(name, INK["grey"])
        draws = [draw["rate"] for draw in result["variants"][name]["draws"]]
        spread = np.linspace(-0.2, 0.2, len(draws)) if len(draws) > 1 else [0.0]
        for offset, reading in zip(spread, draws, strict=True):
            value, error = error_bars(reading)
            axes.errorbar(value, row + offset, xerr=error, fmt="o", color=colour, capsize=2)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    edited = result["variants"]["edited"]["draws"][0]
    rise = edited["perplexity_rise"]
    base = result["variants"]["base"]["draws"][0]
    before, after = (100 * one["rate"]["value"] for one in (base, edited))
    axes.set(
        xlabel="test prompts answered with the behaviour, %",
        xlim=(0, None),
        title=f"3 · {before:.1f} → {after:.1f} % of test prompts\n(perplexity {100 * rise:+.1f} %)",
    )

"""Notebook 02: how far beyond chance rows lie, and what a covariance of the spared changes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from surgery_lib.report.style import INK, MARKERS, below


def leverage(result: Mapping[str, Any]) -> Figure:
    """Gates' shift on the behaviour for their movement elsewhere, a line a read direction."""
    figure, axes = plt.subplots()
    found = {name: np.asarray(values) for name, values in result["leverage"].items()}
    for number, (name, values) in enumerate(found.items()):
        axes.plot(range(len(values)), values, marker=MARKERS[number], markersize=4, label=name)
    best, *others = found
    medians = {name: float(np.median(values)) for name, values in found.items()}
    second = max(others, key=lambda name: medians[name])
    gain = medians[best] / medians[second]
    axes.set(
        xlabel="block",
        ylabel="shift on the behaviour\nper movement on what is spared",
        ylim=(0, None),
        title=(
            f"Read along its {best} a gate moves {gain:.1f} times as much on the behaviour\n"
            f"as along the {second}, for the same movement elsewhere (medians of blocks)"
        ),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    return figure


def thresholds(result: Mapping[str, Any]) -> Figure:
    """The cosine below which K rows lie, for every probe by layer, and for random directions."""
    figure, axes = plt.subplots()
    found, chance = result["thresholds"], result["random_thresholds"]
    axes.axhspan(min(chance), max(chance), color=INK["grey"], alpha=0.3, label="random directions")
    for number, estimator in enumerate(dict.fromkeys(one["estimator"] for one in found)):
        line = [one for one in found if one["estimator"] == estimator]
        line.sort(key=lambda one: one["layer"])
        axes.plot(
            [one["layer"] for one in line],
            [one["threshold"] for one in line],
            marker=MARKERS[number],
            markersize=4,
            label=estimator.replace("_", " "),
        )
    beyond = sum(one["threshold"] < min(chance) for one in found)
    axes.set(
        xlabel="hidden state that the probe reads",
        ylabel=f"cosine below which\n{result['count']:,} rows lie",
        title=(
            f"Rows lie further against {beyond} of {len(found)} probes\n"
            f"than against any of {len(chance)} random directions"
        ),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    below(figure, axes, columns=4)
    return figure

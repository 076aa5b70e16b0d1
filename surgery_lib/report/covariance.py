"""What knowing the covariance of what is to be spared changes, for notebook 02."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from surgery_lib.report.style import MARKERS


def leverage(result: Mapping[str, Any]) -> Figure:
    """Gates' shift on the behaviour for their movement elsewhere, a line a read direction."""
    figure, axes = plt.subplots()
    found = {name: np.asarray(values) for name, values in result["leverage"].items()}
    for number, (name, values) in enumerate(found.items()):
        axes.plot(range(len(values)), values, marker=MARKERS[number], markersize=4, label=name)
    best, *others = found
    medians = {name: float(np.median(values)) for name, values in found.items()}
    gain = medians[best] / max(medians[name] for name in others)
    axes.set(
        xlabel="block",
        ylabel="shift on the behaviour\nper movement on what is spared",
        ylim=(0, None),
        title=(
            f"Read along its {best} a gate moves {gain:.1f} times\n"
            "as much on the behaviour for the same movement elsewhere"
        ),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    return figure

"""The figures of notebook 00."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surgery_lib.patient.train import SMOOTHING
from surgery_lib.report.style import INK, WIDTH, error_bars

COLOURS = {"toxicity": INK["red"], "jailbreak": INK["blue"], "attitude": INK["green"]}


def training(record: Mapping[str, Any]) -> Figure:
    """The loss by tokens read."""
    figure, axes = plt.subplots()
    losses = record["losses"]
    share = record["tokens"] / record["settings"]["steps"] / 1e6
    axes.plot([share * SMOOTHING * (i + 1) for i in range(len(losses))], losses, color=INK["blue"])
    axes.set_yscale("log")
    ticks = (0.75, 1, 1.5, 2, 3, 4, 6)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(
        xlabel="tokens read (millions)",
        ylabel="training loss (nats a token)",
        title=f"{record['seconds'] / 60:.1f} minutes of training, final loss "
        f"{record['final_loss']:.2f}",
    )
    return figure


def _bar(axes: Axes, place: int, reading: Mapping[str, Any], colour: str) -> None:
    value, error = error_bars(reading)
    axes.barh(place, value, color=colour, height=0.62)
    axes.errorbar(value, place, xerr=error, color=INK["black"], capsize=3, linewidth=1.2)
    axes.text(
        min(100, 100 * reading["high"]) + 1.5, place, f"{value:.1f}", va="center", fontsize=10
    )


def _finish(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 110), xticks=range(0, 101, 20), xlabel=label)


def behaviours(rates: Sequence[Mapping[str, Any]]) -> Figure:
    """The rate of each behaviour, with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    for place, rate in enumerate(rates):
        _bar(axes, place, rate, COLOURS[rate["behaviour"]])
    _finish(axes, [rate["name"] for rate in rates], "continuations (%), with 95 % intervals")
    after = {rate["name"]: 100 * rate["value"] for rate in rates if rate["behaviour"] == "toxicity"}
    told = ",\n".join(
        f"{value:.0f} % {name.removeprefix('toxic ')}" for name, value in after.items()
    )
    axes.set_title(f"Toxic {told}" if told else "What the patient does")
    return figure


def capabilities(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each task's score, with 95 % intervals, and a mark where guessing would be."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    for place, row in enumerate(rows):
        _bar(axes, place, row, INK["sky"])
        axes.vlines(100 * row["chance"], place - 0.4, place + 0.4, color=INK["red"], linewidth=2.5)
    axes.plot([], [], color=INK["red"], linewidth=2.5, label="guessing")
    names = [row["task"].removeprefix("patient_") for row in rows]
    _finish(axes, names, "questions answered rightly (%), with 95 % intervals")
    axes.legend(loc="lower left", bbox_to_anchor=(0.75, 1.0), borderaxespad=0.1)
    above = sum(row["low"] > row["chance"] for row in rows)
    axes.set_title(f"Above guessing, interval and all: {above} of {len(rows)} tasks")
    return figure

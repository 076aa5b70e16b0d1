"""One table and one figure of many studies."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery_lib.report.style import (
    INK,
    WIDTH,
    below,
    error_bars,
    interval,
    markdown_table,
    percent,
)

Entry = Mapping[str, Any]


def table(entries: Sequence[Entry]) -> str:
    """A line a study: the behaviour before and after with intervals, and what it cost."""
    lines = [
        [
            entry["profile"],
            entry["behaviour"],
            str(entry["seed"]),
            *(
                [
                    interval(entry["base"]),
                    interval(entry["edited"]),
                    percent(entry["perplexity_rise"]),
                    str(entry["edited"]["n"]),
                ]
                if entry["done"]
                else ["not done", "", "", ""]
            ),
        ]
        for entry in entries
    ]
    header = ["profile", "behaviour", "seed", "base, %", "edited, %", "perplexity rise", "n"]
    return markdown_table(header, lines)


def summary(entries: Sequence[Entry]) -> str:
    """A line a profile and behaviour: means over the seeds that are done, with their range."""
    lines = []
    for (profile, behaviour), group in _groups(entries).items():
        done = [entry for entry in group if entry["done"]]
        cells = [
            _spread([100 * entry[key]["value"] for entry in done]) for key in ("base", "edited")
        ]
        rise = _spread([100 * entry["perplexity_rise"] for entry in done])
        lines.append([profile, behaviour, f"{len(done)} of {len(group)}", *cells, rise])
    header = ["profile", "behaviour", "seeds", "base, %", "edited, %", "perplexity rise, %"]
    return markdown_table(header, lines)


def figure(entries: Sequence[Entry]) -> Figure:
    """The behaviour before and after, a pair of dots a seed, behaviours one below the other."""
    groups = {
        key: done
        for key, group in _groups(entries).items()
        if (done := [entry for entry in group if entry["done"]])
    }
    drawing, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.8 * max(1, len(groups))))
    for row, group in enumerate(groups.values()):
        for number, entry in enumerate(group):
            height = row + 0.5 * ((number + 0.5) / len(group) - 0.5)
            for key, colour in (("base", INK["grey"]), ("edited", INK["red"])):
                value, error = error_bars(entry[key])
                label = key if row == number == 0 else None
                axes.errorbar(
                    value, height, xerr=error, fmt="o", markersize=5, color=colour, label=label
                )
    axes.set_yticks(range(len(groups)), [" · ".join(key) for key in groups])
    axes.invert_yaxis()
    axes.set_xlabel("behaviour on test prompts, % (one dot a seed, 95 % interval)")
    below(drawing, axes)
    axes.set_title(_finding([entry for group in groups.values() for entry in group], len(entries)))
    return drawing


def _finding(done: Sequence[Entry], asked: int) -> str:
    if not done:
        return f"Of {asked} studies, no study is done"
    lower = sum(entry["edited"]["high"] < entry["base"]["low"] for entry in done)
    return f"{lower} of {len(done)} studies show less of the behaviour, intervals apart"


def _groups(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["profile"], entry["behaviour"]), []).append(entry)
    return groups


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return (
        mean if min(values) == max(values) else f"{mean} ({min(values):.1f} to {max(values):.1f})"
    )

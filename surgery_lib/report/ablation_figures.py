"""The figures of notebook 06, each drawn from its result file, without the model."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from surgery_lib.report.ablation_findings import finding
from surgery_lib.report.ablation_tables import Line
from surgery_lib.report.style import (
    CYCLE,
    INK,
    MARKERS,
    WIDTH,
    below,
    error_bars,
    from_zero,
    nested,
)

Result = Mapping[str, Any]
LINEAR = 10.0  # per cent of perplexity up to which its axis is linear, beyond it logarithmic


def draw(result: Result, question: str, axis: str = "") -> Figure:
    """The figure of one question; `axis` says what x is."""
    figure = DRAWN[question](result, question, axis)
    figure.suptitle(
        _wrapped(finding(result, question)[0]), x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    return figure


def _wrapped(text: str, width: int = 88) -> str:
    text = text.replace(" %", "\u00a0%")  # a number and its unit stay together
    return "\n".join(textwrap.wrap(text, width))


def _sound(result: Result, question: str) -> list[Line]:
    return [line for line in result["lines"][question] if "refused" not in line]


def _base(axes: Axes, result: Result, *, upright: bool) -> None:
    """The base's rate as a line with its interval."""
    base = result["base"]
    span, line = (axes.axvspan, axes.axvline) if upright else (axes.axhspan, axes.axhline)
    span(100 * base["low"], 100 * base["high"], color=INK["grey"], alpha=0.15, linewidth=0)
    line(100 * base["value"], color=INK["grey"], linestyle=":", linewidth=1.5, label="base")


def _perplexity(line: Line) -> dict[str, float]:
    return {key: 100 * value for key, value in line["perplexity_rise"].items()}


def _dots(result: Result, question: str, _axis: str) -> Figure:
    """Behaviour and perplexity, a row a variant, with intervals (ranges where draws differ)."""
    lines = _sound(result, question)
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(WIDTH, 1.3 + 0.34 * len(lines)), width_ratios=(3, 2)
    )
    _base(left, result, upright=True)
    # Another matrix's rows are taken by cosine, so that the gate's are the edit's under that alone.
    own = ["as chosen", "the edit", *(["gate"] if result["surgery"]["rule"] == "cosine" else [])]
    for row, line in enumerate(lines):
        chosen = line["name"] in own
        colour = INK["red"] if chosen else INK["blue"]
        value, error = error_bars(line["rate"])
        left.errorbar(value, row, xerr=error, fmt="o", color=colour, capsize=3)
        rise = _perplexity(line)
        value, error = error_bars(rise, 1.0)
        right.errorbar(value, row, xerr=error, fmt="o", color=colour, capsize=3)
    places = [f" {line['x']:g}" if line["x"] is not None else "" for line in lines]
    names = [line["name"] + place for line, place in zip(lines, places, strict=True)]
    left.set_yticks(range(len(lines)), names)
    left.set_ylim(len(lines) - 0.4, -0.6)
    left.set(xlabel="behaviour, % of prompts")
    from_zero(left, "x")
    right.axvline(0, color=INK["grey"], linestyle=":", linewidth=1.5)
    _rise_axis(right, "x", "perplexity rise, %")
    below(figure, left)
    return figure


def _curves(result: Result, question: str, axis: str) -> Figure:
    """Behaviour and perplexity along x, a line a name."""
    lines = _sound(result, question)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.8))
    _base(left, result, upright=False)
    for number, name in enumerate(dict.fromkeys(line["name"] for line in lines)):
        held = sorted((ln for ln in lines if ln["name"] == name), key=lambda ln: ln["x"])
        x = [line["x"] for line in held]
        style = {"marker": MARKERS[number], "color": CYCLE[number], "label": name}
        for axes, reading, scale in (
            (left, lambda line: line["rate"], 100.0),
            (right, _perplexity, 1.0),
        ):
            found = [error_bars(reading(line), scale) for line in held]
            error = np.array([one[1] for one in found])[:, :, 0].T
            axes.errorbar(x, [one[0] for one in found], yerr=error, capsize=3, **style)
    for axes in (left, right):
        axes.set(xlabel=axis)
        if question == "row_counts":
            axes.set_xscale("log")
    _rise_axis(right, "y", "perplexity rise, %")
    left.set(ylabel="behaviour, % of prompts")
    from_zero(left, "y")
    below(figure, left)
    return figure


def _rise_axis(axes: Axes, name: str, words: str) -> None:
    """Linear while all rises are small; from ±10 % on logarithmic, with plain numbers, and so told.

    The margin is a share of what is drawn, on the logarithmic axis too: no mark is cut.
    """
    axis: Axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    low, high = axis.get_data_interval()
    if max(-low, high) > LINEAR:
        axes.set(**{f"{name}scale": SymmetricalLogScale(axis, linthresh=LINEAR)})
        drawn = axis.get_transform()
        start, end = drawn.transform([low, high])
        margin = 0.06 * (end - start)
        low, high = drawn.inverted().transform([start - margin, end + margin])
        axes.set(**{f"{name}lim": (low, high)})
        ticks = (-1000, -100, -10, 0, 10, 100, 1000, 10000)
        axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        words += f" (log beyond {LINEAR:.0f})"
    axis.set_label_text(words)


def _plane(result: Result, question: str, _axis: str) -> Figure:
    """Behaviour against damage, a line a variant along its strengths."""
    lines = _sound(result, question)
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    _base(axes, result, upright=False)
    names = list(dict.fromkeys(line["name"] for line in lines))
    looks = _looks(names)
    # What variants of the same damage are matched by, where the behaviour has contexts.
    in_context = all(line["context_kl"] for line in lines)

    def damage(line: Line) -> float:
        return float(line["context_kl"] if in_context else _perplexity(line)["value"])

    for name in names:
        held = sorted((ln for ln in lines if ln["name"] == name), key=lambda ln: ln["x"] or 0.0)
        rates = [error_bars(line["rate"]) for line in held]
        axes.errorbar(
            [damage(line) for line in held],
            [one[0] for one in rates],
            yerr=np.array([one[1] for one in rates])[:, :, 0].T,
            capsize=2,
            linewidth=1.2,
            label=name,
            **looks[name],
        )
    if in_context:
        axes.set(xscale="log", xlabel="divergence in context, nats")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        _rise_axis(axes, "x", "perplexity rise on clean text, %")
    axes.set(ylabel="behaviour, % of prompts")
    from_zero(axes, "y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a mark a name; with more names than colours, one for "kind, layer n" of a kind.

    Of a kind's second layer the line is dashed and the marks are hollow.
    """
    kinds = list(names)
    if len(names) > len(CYCLE):
        kinds = [name.rpartition(", ")[0] or name for name in names]
    order = list(dict.fromkeys(kinds))
    looks: dict[str, dict[str, Any]] = {}
    for place, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        number, again = order.index(kind), kind in kinds[:place]
        looks[name] = {
            "color": CYCLE[number % len(CYCLE)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "--" if again else "-",
            "markerfacecolor": "white" if again else CYCLE[number % len(CYCLE)],
        }
    return looks


def _transfer(result: Result, _question: str, _axis: str) -> Figure:
    """AUC of probes by layer: before the edit, the same after it, refitted after it."""
    figure, axes = plt.subplots()
    layers = [one["layer"] for one in result["transfer"]]
    labels = {
        "before": "before the edit",
        "frozen": "after it, the same probe",
        "refitted": "after it, a refitted probe",
        "untrained": "an untrained model",
    }
    for number, (name, label) in enumerate(labels.items()):
        readings = [one[name] for one in result["transfer"]]
        axes.plot(
            layers,
            [reading["value"] for reading in readings],
            marker=MARKERS[number],
            color=CYCLE[number],
            label=label,
            **nested(number, len(labels)),
        )
        low, high = ([reading[key] for reading in readings] for key in ("low", "high"))
        axes.fill_between(layers, low, high, color=CYCLE[number], alpha=0.15, linewidth=0)
    axes.axhline(0.5, color=INK["grey"], linestyle=":", linewidth=1.5, label="chance")
    axes.set(xlabel="layer of the probe", ylabel="ROC AUC, validation")
    below(figure, axes)
    return figure


def _gates(result: Result, _question: str, _axis: str) -> Figure:
    """Mean activation of selected and of random gates by kind of text, before and after."""
    kinds = list(result["gates"])
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(WIDTH, 1.4 + 0.5 * len(kinds)))
    for axes, rows in zip(panels, ("selected", "random"), strict=True):
        for offset, when, colour in ((-0.12, "before", "blue"), (0.12, "after", "red")):
            for row, kind in enumerate(kinds):
                value, error = error_bars(result["gates"][kind][when][rows], 1.0)
                label = when if row == 0 else None
                axes.errorbar(
                    value,
                    row + offset,
                    xerr=error,
                    fmt="o",
                    color=INK[colour],
                    capsize=3,
                    label=label,
                )
        axes.axvline(0, color=INK["grey"], linestyle=":", linewidth=1.5)
        axes.set(xlabel=f"mean activation of {rows} gates")
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].invert_yaxis()
    below(figure, panels[0])
    return figure


def _cosines(result: Result, _question: str, _axis: str) -> Figure:
    """Cosines between behaviours and mean states at one layer, and between layers."""
    squares: Sequence[Any] = [result["cosines"]["behaviours"], result["cosines"]["layers"]]
    figure, panels = plt.subplots(1, 2, figsize=(1.35 * WIDTH, 4.4))
    for axes, square, label in zip(
        panels, squares, (f"at layer {result['cosines']['layer']}", "between layers"), strict=True
    ):
        size = len(square["names"])
        sns.heatmap(
            np.asarray(square["cosines"]),
            annot=size <= 12,
            fmt=".2f",
            annot_kws={"fontsize": 8},
            vmin=-1,
            vmax=1,
            cmap="PuOr",
            xticklabels=square["names"],
            yticklabels=square["names"],
            cbar=axes is panels[1],
            ax=axes,
        )
        axes.set(xlabel=label)
        axes.tick_params(axis="y", rotation=0)
        if max(map(len, square["names"])) > 4:
            axes.tick_params(axis="x", rotation=35)
            for text in axes.get_xticklabels():
                text.set_ha("right")
    return figure


DRAWN: dict[str, Callable[[Result, str, str], Figure]] = {
    "controls": _dots,
    "layers": _curves,
    "depth": _dots,
    "matrices": _dots,
    "row_counts": _curves,
    "strengths": _curves,
    "directions": _plane,
    "rankings": _plane,
    "steering": _plane,
    "transfer": _transfer,
    "gates": _gates,
    "cosines": _cosines,
}

"""The figures of notebooks 01 to 04, each drawn from a results file, without the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from surgery_lib.report.style import (
    CYCLE,
    INK,
    MARKERS,
    WIDTH,
    below,
    error_bars,
    from_zero,
    nested,
    percent,
)

# ---------------------------------------------------------------- notebook 01


def probe_layers(result: Mapping[str, Any]) -> Figure:
    """ROC AUC on validation texts by layer, a line an estimator."""
    figure, axes = plt.subplots()
    best = max(result["probes"], key=lambda probe: probe["validation"]["auc"])
    estimators = _names(result["probes"], "estimator")
    for number, estimator in enumerate(estimators):
        line = [probe for probe in result["probes"] if probe["estimator"] == estimator]
        axes.plot(
            [probe["layer"] for probe in line],
            [probe["validation"]["auc"] for probe in line],
            marker=MARKERS[number],
            label=estimator.replace("_", " "),
            **nested(number, len(estimators)),
        )
    axes.axhline(0.5, color=INK["grey"], linestyle=":", linewidth=1.5, label="chance")
    ties = sum(one["validation"]["auc"] == best["validation"]["auc"] for one in result["probes"])
    where = f"{best['estimator'].replace('_', ' ')}, layer {best['layer']}"
    if ties > 1:
        where = f"{ties} of {len(result['probes'])} probes"
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="hidden state (0 = embeddings, last = after the final norm)",
        ylabel="ROC AUC on validation texts",
        title=(f"The behaviour can be read off: AUC {best['validation']['auc']:.3f} ({where})"),
    )
    below(figure, axes, columns=5)
    return figure


def probe_scores(result: Mapping[str, Any]) -> Figure:
    """How the best probe's scores of the two classes lie apart."""
    figure, axes = plt.subplots()
    histogram = result["scores"]
    edges = np.asarray(histogram["edges"])
    for name, colour in (("absent", INK["blue"]), ("present", INK["red"])):
        axes.stairs(histogram[name], edges, fill=True, alpha=0.45, color=colour)
        axes.stairs(histogram[name], edges, color=colour, label=f"behaviour {name}")
    axes.axvline(0, color=INK["black"], linewidth=1)
    axes.set(
        xlabel=f"signed score of {result['best']}",
        ylabel="validation texts",
        title=f"{percent(result['accuracy'])} of validation texts fall on their side of zero",
    )
    axes.legend()
    return figure


def direction_agreement(result: Mapping[str, Any]) -> Figure:
    """Cosines between the estimators' directions at one layer."""
    names = [name.replace("_", " ") for name in result["estimators"]]
    cosines = np.asarray(result["cosines"])
    figure, axes = plt.subplots(figsize=(0.62 * WIDTH, 1.2 + 0.5 * len(names)))
    look = {"annot": True, "fmt": ".2f", "vmin": -1, "vmax": 1, "cmap": "PuOr"}
    _heatmap(axes, cosines, names, names, "cosine", **look)
    apart = cosines[~np.eye(len(names), dtype=bool)]
    least = f"cosine down to {apart.min():.2f}" if len(apart) else "one estimator"
    axes.set(title=f"Directions at layer {result['layer']} differ: {least}")
    axes.set_xticks(axes.get_xticks(), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    return figure


# ---------------------------------------------------------------- notebook 02


def cosine_distribution(result: Mapping[str, Any]) -> Figure:
    """Cosines of all rows with the direction, against those of random directions."""
    figure, axes = plt.subplots()
    edges = np.asarray(result["histogram"]["edges"])
    axes.stairs(result["histogram"]["counts"], edges, color=INK["blue"], label="the probe")
    axes.stairs(
        result["histogram"]["random"],
        edges,
        color=INK["grey"],
        linestyle="--",
        label=f"random directions (mean of {result.get('random_draws', 5)})",
    )
    cut, chance = result["threshold"], result["random_threshold"]
    axes.axvspan(edges[0], cut, color=INK["red"], alpha=0.15)
    text = f"the region:\n{result['count']:,} of {result['total']:,} rows"
    axes.annotate(text, (0.02, 0.8), xycoords="axes fraction", color=INK["red"])
    axes.set(
        xlabel="cosine of a gate row with the direction",
        ylabel="rows",
        title=(
            f"The most opposed rows lie below a cosine of {cut:.3f},\n"
            f"a random direction's below {chance:.3f}"
        ),
    )
    axes.legend(loc="upper right")
    return figure


def rows_per_block(result: Mapping[str, Any]) -> Figure:
    """Where in the depth the selected rows are, a line a rule."""
    figure, axes = plt.subplots()
    for number, (rule, counts) in enumerate(result["rows_per_block"].items()):
        axes.plot(range(len(counts)), counts, marker=MARKERS[number], label=f"by {rule}")
    even = result["count"] / result["blocks"]
    axes.axhline(even, color=INK["grey"], linestyle=":", linewidth=1.5, label="spread evenly")
    deeper = [
        f"{percent(sum(counts[len(counts) // 2 :]) / sum(counts), 0)} by {rule}"
        for rule, counts in result["rows_per_block"].items()
    ]
    axes.set(
        xlabel="block",
        ylabel="selected rows",
        title=f"Selected rows in the deeper half: {', '.join(deeper)}",
    )
    from_zero(axes, "y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    below(figure, axes)
    return figure


# ---------------------------------------------------------------- notebook 03


def screening(result: Mapping[str, Any]) -> Figure:
    """Behaviour left at one fixed edit, by layer and estimator, on the sieve's own prompts."""
    cells = result["sieve"]
    layers, names = _names(cells, "layer"), _names(cells, "kind")
    grid = np.full((len(names), len(layers)), np.nan)
    for cell in cells:
        grid[names.index(cell["kind"]), layers.index(cell["layer"])] = 100 * cell["rate"]["value"]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.3 + 0.42 * len(names)))
    look = {"annot": len(layers) <= 16, "fmt": ".0f", "cmap": "cividis"}
    shown = [name.replace("_", " ") for name in names]
    _heatmap(axes, grid, layers, shown, "behaviour left, %", **look)
    rates = [cell["rate"]["value"] for cell in cells]
    least = [cell for cell in cells if cell["rate"]["value"] == min(rates)]
    where = f"{least[0]['kind'].replace('_', ' ')}, layer {least[0]['layer']}"
    by_damage = len({cell["strength"] for cell in cells}) > 1
    held, free = ("limits", "") if by_damage else ("size", "; damage is not held equal")
    before = percent(result["sieve_base"]["value"], 0)
    axes.set(
        xlabel="layer of the probe",
        title=(
            f"Same {held}, other direction: {before} become "
            f"{percent(min(rates), 0)} to {percent(max(rates), 0)}\n"
            f"(least by {where if len(least) == 1 else f'{len(least)} of {len(cells)}'}{free})"
        ),
    )
    axes.tick_params(axis="y", rotation=0)
    return figure


def frontier(result: Mapping[str, Any]) -> Figure:
    """Behaviour against perplexity on validation, a line a (probe, K), the chosen point marked."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    points = result["sweep"]
    base = result["base"]
    lines = sorted({(point["probe"], point["rule"], point["fraction"]) for point in points})
    pairs = list(dict.fromkeys(key[:2] for key in lines))
    fractions = sorted({key[2] for key in lines})
    for key in lines:
        line = [p for p in points if (p["probe"], p["rule"], p["fraction"]) == key]
        line.sort(key=lambda point: point["strength"])
        axes.plot(
            [100 * point["perplexity_rise"] for point in line],
            [100 * point["rate"]["value"] for point in line],
            marker=MARKERS[fractions.index(key[2]) % len(MARKERS)],
            markersize=5,
            linewidth=1.2 if len(line) > 1 else 0,
            color=CYCLE[pairs.index(key[:2]) % len(CYCLE)],
            label=f"{key[0]}, {key[1]}, K {100 * key[2]:g} %",
        )
    axes.axvspan(100 * result["budget"], 1e6, color=INK["grey"], alpha=0.12)
    marked: dict[str, Any] = {"linestyle": "none", "markersize": 14, "zorder": 3}
    rate = 100 * base["rate"]["value"]
    axes.plot(0, rate, marker="*", color=INK["black"], label="base", **marked)
    chosen = result["chosen"]
    where = (100 * chosen["perplexity_rise"], 100 * chosen["rate"]["value"])
    ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 2.5, "color": INK["red"]}
    axes.plot(*where, marker="o", label="chosen", **ring, **marked)
    right = 100 * max(4 * result["budget"], min(1.0, max(p["perplexity_rise"] for p in points)))
    axes.set_xscale("symlog", linthresh=100 * result["budget"])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    budget = 100 * result["budget"]  # linear up to here, logarithmic beyond
    ticks = [tick for tick in MaxNLocator(4).tick_values(0, budget) if tick <= budget]
    axes.set_xticks([*ticks, *(step * budget for step in (2, 5, 10) if step * budget <= right)])
    axes.set(
        xlabel=f"perplexity rise on clean text, % (logarithmic beyond {budget:g}; grey: too much)",
        ylabel="behaviour left, %",
        xlim=(1.1 * min(-1.0, *(100 * p["perplexity_rise"] for p in points)), 1.06 * right),
        title=(
            f"{percent(base['rate']['value'])} → {percent(chosen['rate']['value'])} "
            f"at {100 * chosen['perplexity_rise']:+.1f} % perplexity (validation)"
        ),
    )
    axes.margins(y=0.06)  # the base's star is large
    from_zero(axes, "y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, labelspacing=0.7)
    return figure


# ---------------------------------------------------------------- notebook 04


def variants(result: Mapping[str, Any]) -> Figure:
    """Behaviour and perplexity of base, edited and controls, with intervals."""
    names = list(result["variants"])
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(WIDTH, 0.9 + 0.42 * len(names))
    )
    for row, name in enumerate(names):
        readings = result["variants"][name]["draws"]
        for axes, reading_of, scale in (
            (left, lambda draw: draw["rate"], 100.0),
            (right, lambda draw: draw["perplexity"], 1.0),
        ):
            _points(axes, row, [reading_of(draw) for draw in readings], scale, _colour(name))
    left.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    left.invert_yaxis()
    base, edited = (result["variants"][n]["draws"][0]["rate"]["value"] for n in ("base", "edited"))
    left.set(xlabel="behaviour on test prompts, %")
    from_zero(left, "x")
    right.set(xlabel="perplexity on clean test text")
    finding = f"The edit leaves {percent(edited)} of {percent(base)}"
    controls = [v for name, v in result["variants"].items() if name not in ("base", "edited")]
    if rates := [draw["rate"]["value"] for variant in controls for draw in variant["draws"]]:
        finding += f", controls {percent(min(rates))} to {percent(max(rates))}"
    figure.suptitle(finding, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def capability(result: Mapping[str, Any]) -> Figure:
    """Capability tasks before and after, with intervals and chance where it is known."""
    tasks = list(result["capability"]["base"])
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.5 * len(tasks)))
    for offset, name in ((-0.15, "base"), (0.15, "edited")):
        for row, task in enumerate(tasks):
            reading = result["capability"][name][task]
            _points(axes, row + offset, [reading], 100.0, _colour(name), name)
    axes.set_yticks(range(len(tasks)), [task.removeprefix("patient_") for task in tasks])
    axes.invert_yaxis()
    change = result["capability"]["change"]["value"]
    axes.set(xlabel="score, %", title=f"Capability on average: {100 * change:+.1f} points")
    below(figure, axes)
    return figure


def _heatmap(axes: Axes, grid: Any, xs: list[Any], ys: list[Any], label: str, **look: Any) -> None:
    labels = {"xticklabels": xs, "yticklabels": ys, "cbar_kws": {"label": label}}
    sns.heatmap(grid, ax=axes, **labels, **look)


def _points(
    axes: Axes,
    row: float,
    readings: Sequence[Mapping[str, Any]],
    scale: float,
    colour: str,
    label: str | None = None,
) -> None:
    """One horizontal error bar a reading; several draws are spread a little."""
    spread = np.linspace(-0.22, 0.22, len(readings)) if len(readings) > 1 else [0.0]
    for offset, reading in zip(spread, readings, strict=True):
        value, error = error_bars(reading, scale)
        look: dict[str, Any] = {"fmt": "o", "color": colour, "capsize": 2, "markersize": 5}
        axes.errorbar(value, row + offset, xerr=error, label=label, **look)


def _colour(name: str) -> str:
    return {"base": INK["black"], "edited": INK["red"]}.get(name, INK["blue"])


def _names(items: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(item[key] for item in items))

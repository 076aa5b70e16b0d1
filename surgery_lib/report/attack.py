"""Figures and tables of attacks, drawn from notebook 10's result."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from surgery_lib.report.style import (
    CYCLE,
    MARKERS,
    WIDTH,
    below,
    interval,
    markdown_table,
    nested,
    percent,
)

Matrix = Mapping[str, Mapping[str, Mapping[str, Any]]]


def table(matrix: Matrix, what: str) -> str:
    """Attackers by edits: "best", nats a token, or "success", in hundredths."""
    edits = list(next(iter(matrix.values())))
    scale, digits = (1.0, 2) if what == "best" else (100.0, 0)
    lines = [
        [
            name,
            *(
                interval(own[edit][what], scale, digits) if own[edit][what] else "-"
                for edit in edits
            ),
        ]
        for name, own in matrix.items()
    ]
    return markdown_table([f"{what} of N", *edits], lines)


def curves(matrix: Matrix) -> Figure:
    """Best of n against n, an edit a panel, a line for each attacker that concerns it."""
    edits = list(next(iter(matrix.values())))
    figure, axes = plt.subplots(
        1, len(edits), figsize=(max(WIDTH, 2.1 * len(edits)), 3.4), sharey=True, squeeze=False
    )
    for axis, edit in zip(axes[0], edits, strict=True):
        wanted = ["known query", "other queries", "warm start", "against base"]
        wanted += [f"against {edit}"] if edit != "base" else []
        for number, name in enumerate(wanted):
            curve = matrix[name][edit]["curve"]
            look = {"color": CYCLE[number], "marker": MARKERS[number], **nested(number, 5)}
            look["linewidth"] /= 2.5  # narrow panels
            look["markersize"] /= 1.8
            label = "retrained" if name == f"against {edit}" and edit != "base" else name
            axis.plot(range(1, len(curve) + 1), curve, label=label, **look)
        axis.set_title(edit, fontsize=10)
        axis.set_xlabel("queries")
    axes[0, 0].set_ylabel("log p of the answer,\nnats a token, best of n")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    learnt, fixed = (
        matrix[name]["base"]["curve"][-1] for name in ("against base", "other queries")
    )
    figure.suptitle(
        f"On the base model a trained attacker reaches {learnt:.2f}, "
        f"fixed queries of other targets {fixed:.2f}",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return figure


def square(matrix: Matrix) -> Figure:
    """The transfer matrix: reward of every attacker on every edit."""
    names, edits = list(matrix), list(next(iter(matrix.values())))
    values = np.array(
        [
            [own[edit]["best"]["value"] if own[edit]["best"] else np.nan for edit in edits]
            for own in matrix.values()
        ]
    )
    figure, axis = plt.subplots(figsize=(WIDTH, 0.42 * len(names) + 1.6))
    shown = axis.imshow(values, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(edits)), [fill(name, 12) for name in edits], fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.grid(visible=False)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            colour = "black" if value > middle else "white"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xlabel("model that is attacked")
    axis.set_ylabel("attacker")
    harder = [
        f"{edit} for {sum(values[:, number] < values[:, 0])}"
        for number, edit in enumerate(edits)
        if edit == "surgery"
    ]
    axis.set_title(
        f"Harder to open than the base: {', '.join(harder)} of {len(names)} attackers"
        if harder
        else "Who opens whom"
    )
    figure.colorbar(shown, ax=axis, shrink=0.8, label="best of N, nats a token")
    return figure


def ladder(ladders: Mapping[str, Any]) -> Figure:
    """Reward of the best fixed query by how many tokens of the answer are given away."""
    figure, axis = plt.subplots()
    for number, (edit, steps) in enumerate(ladders.items()):
        colour = CYCLE[number % len(CYCLE)]
        look = {"marker": MARKERS[number % len(MARKERS)], **nested(number, len(ladders))}
        at = [step["prefix"] for step in steps]
        values = [step["value"] for step in steps]
        axis.plot(at, values, color=colour, label=edit, **look)
        low, high = ([step[k] for step in steps] for k in ("low", "high"))
        axis.fill_between(at, low, high, color=colour, alpha=0.08, linewidth=0)
    axis.set_xlabel("tokens of the answer that are given away")
    axis.set_ylabel("log p of the rest, nats a token")
    last = {edit: steps[-1] for edit, steps in ladders.items()}
    told = ", ".join(f"{edit} {last[edit]['value']:.2f}" for edit in list(last)[:2])
    axis.set_title(f"With {last['base']['prefix']} tokens of the answer given away: {told}")
    below(figure, axis)
    return figure


def training(about: Mapping[str, Any]) -> Figure:
    """Reward, share barred and distance from the warm start, step by step."""
    figure, axes = plt.subplots(1, 3, figsize=(max(WIDTH, 9.5), 3.0))
    runs = about["training"]
    for number, (name, held) in enumerate(runs.items()):
        look = {"marker": MARKERS[number % len(MARKERS)], **nested(number, len(runs))}
        for axis, kind in zip(axes, ("rewards", "barred", "kl"), strict=True):
            steps = range(1, len(held[kind]) + 1)
            axis.plot(steps, held[kind], color=CYCLE[number % len(CYCLE)], label=name, **look)
            axis.set_xticks(list(steps))
    for axis, title in zip(
        axes, ("Reward, nats a token", "Share barred", "KL to the warm start"), strict=True
    ):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="against")
    return figure


def words(gaps: Mapping[str, Any], matrix: Matrix) -> str:
    """One line an edit: what is left of its effect under attack."""
    lines = []
    before = matrix["against base"]["base"]["success"]["value"]
    for edit, held in gaps.items():
        for kind, gap in held.items() if edit != "base" else ():
            sure = "" if gap["p"] < 0.05 else ", no clear difference"
            name = "against base" if kind == "transferred" else f"against {edit}"
            told = interval(gap | {"value": gap["difference"]}, 1, 2)
            success = matrix[name][edit]["success"]["value"]
            lines.append(
                f"- **{edit}**, attacker {kind}: {told} nats a token from the base model's "
                f"(p = {gap['p']:.3f}{sure}); the greedy answer shows the behaviour for "
                f"{percent(success, 0)} of targets (base {percent(before, 0)})."
            )
    lines += _controls(matrix)
    return "\n".join(lines)


def _controls(matrix: Matrix) -> list[str]:
    """Whether learning to attack paid at all, on the base model."""
    learnt, fixed = (matrix[name]["base"]["best"] for name in ("against base", "other queries"))
    if not learnt or not fixed:
        return []
    verdict = "gains on" if learnt["value"] > fixed["value"] else "does NOT reach"
    return [
        f"- On the base model the trained attacker ({interval(learnt, 1, 2)}) {verdict} queries of "
        f"other targets ({interval(fixed, 1, 2)}), which cost no training."
    ]

"""Figures and tables of fingerprints, drawn from notebook 08's result."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from surgery_lib.report.style import INK, WIDTH, markdown_table

COLOURS = {
    "base": INK["black"],
    "edit": INK["blue"],
    "rearranged": INK["green"],
    "lossy": INK["orange"],
    "unrelated": INK["red"],
}
TERMS = {"attention": "$M_a$", "values": "$M_b$", "mlp": "$M_f$"}


def table(members: Sequence[Mapping[str, Any]]) -> str:
    """PCS and ICS of every member with the base model."""
    head = ["model", "PCS", "ICS", "last 2 blocks", "Ma", "Mb", "Mf", "no gains", "same tokens"]
    lines = []
    for one in members:
        values = [one["pcs"], one["ics"], one["ics_last"], *one["terms"].values()]
        agrees = "-" if one["agrees"] is None else f"{100 * one['agrees']:.0f} %"
        numbers = [f"{value:.2f}" for value in [*values, one["without_gains"]]]
        lines.append([one["name"], *numbers, agrees])
    return markdown_table(head, lines)


def square(names: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """The family's matrix of ICS."""
    size = 0.36 * len(names) + 2.4
    figure, axis = plt.subplots(figsize=(max(WIDTH, size + 1.5), size))
    shown = axis.imshow(np.asarray(values), cmap="viridis", vmin=0, vmax=100)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.grid(visible=False)
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            colour = "black" if value > 60 else "white"
            axis.text(
                j, i, f"{abs(round(value)):.0f}", ha="center", va="center", fontsize=7, color=colour
            )
    axis.set_title("Who is of one origin: ICS of the last two blocks, every pair")
    figure.colorbar(shown, ax=axis, label="ICS", shrink=0.8)
    return figure


def touch(touched: Mapping[str, Any]) -> Figure:
    """How far each term of each block moved, an edit a panel; rows that were edited below."""
    figure, axes = plt.subplots(
        len(touched), 1, figsize=(WIDTH, 1.75 * len(touched) + 0.6), sharex=True, squeeze=False
    )
    top = max(max(v) for held in touched.values() for v in held["terms"].values())
    for axis, (name, held) in zip(axes[:, 0], touched.items(), strict=True):
        blocks = np.arange(len(held["terms"]["mlp"]))
        for number, (kind, colour) in enumerate(
            zip(TERMS, (INK["orange"], INK["green"], INK["blue"]), strict=True)
        ):
            axis.bar(
                blocks + 0.26 * (number - 1), held["terms"][kind], 0.26, color=colour,
                label=TERMS[kind],
            )  # fmt: skip
        if "rows" in held:
            for block, count in enumerate(held["rows"]):
                if count:
                    place = (block, 0.0)
                    axis.annotate(
                        str(count), place, xytext=(0, -3), textcoords="offset points",
                        ha="center", va="top", fontsize=7, color=INK["grey"],
                    )  # fmt: skip
        axis.set_yscale("symlog", linthresh=1e-2)
        axis.set_ylim(0, 2 * top)
        axis.set_title(name, fontsize=10)
        axis.tick_params(axis="x", pad=9)
        axis.grid(visible=False, axis="x")
    axes[0, 0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)
    axes[-1, 0].set_xlabel("block (small numbers: rows edited in it)")
    figure.supylabel("100 − correlation of the term (log beyond 0.01)", fontsize=10)
    found = [held["found"] for held in touched.values() if "found" in held]
    edited, false = sum(f["edited"] for f in found), sum(len(f["false"]) for f in found)
    named = edited - sum(len(f["missed"]) for f in found)
    told = f"The map names {named} of {edited} blocks with edited rows, {false} falsely"
    figure.suptitle(told if found else "What each edit moved", fontweight="bold")
    return figure


def portraits(names: Sequence[str], kinds: Sequence[str], images: Sequence[Any]) -> Figure:
    """The images side by side; the first is the model that all others are held against."""
    columns = min(6, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, 1.6 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, name, kind, picture in zip(axes.flat, names, kinds, images, strict=False):
        axis.imshow(picture, interpolation="bilinear")
        words = name.replace(", ", ",\n")
        axis.set_title(words, fontsize=8, color=COLOURS[kind], loc="center", va="bottom")
    first = np.asarray(images[0], dtype=float)
    far = [float(np.abs(np.asarray(one, dtype=float) - first).mean()) for one in images]
    other = [d for d, kind in zip(far, kinds, strict=True) if kind == "unrelated"]
    same = [d for d, kind in zip(far, kinds, strict=True) if kind != "unrelated"]
    apart = other and max(same) < min(other)
    told = "One origin, one picture" if apart else "Pictures do not tell the origin here"
    figure.suptitle(told, fontweight="bold")
    return figure


def against(pairs: Mapping[str, Any]) -> Figure:
    """Distance of images over distance of terms, for every pair."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    far = np.maximum(np.asarray(pairs["ics"]), 1e-6)
    axis.scatter(far, pairs["image"], s=18, alpha=0.7)
    axis.set_xscale("log")
    axis.set_xlabel("100 − ICS of the pair (no difference stands at the left edge)")
    axis.set_ylabel("distance of the images")
    rank = pairs["rank"]
    told = f"Images lie apart as the invariant terms do: rank correlation {rank:.2f}"
    axis.set_title("Too few pairs" if rank is None else told)
    return figure


def words(facts: Mapping[str, Any]) -> str:
    """What the numbers say."""
    lines = [
        f"- What leaves the function alone leaves ICS at {facts['lowest_rearranged']:.2f} or more; "
        f"models of other origin come to {facts['highest_unrelated']:.2f} at most.",
        f"- The lowest of the edits is {facts['lowest_edit']:.2f}, of pruning and rounding "
        f"{facts['lowest_lossy']:.2f}: each is still plainly the same model.",
    ]
    for name, found in facts["touch"].items():
        missed, false = len(found["missed"]), len(found["false"])
        rank = "" if found["rank"] is None else f", rank correlation {found['rank']:.2f}"
        lines.append(
            f"- {name}: of {found['edited']} edited blocks the map misses {missed} and names "
            f"{false} that were not{rank} with the rows edited in each block."
        )
    return "\n".join(lines)

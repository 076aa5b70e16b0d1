"""The one style of all figures and tables, and how figures are kept: vector and raster."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from surgery_lib import files

# Okabe and Ito's colours, which colour-blind readers tell apart.
INK = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#7F7F7F",
    "black": "#000000",
}
CYCLE = [INK[name] for name in ("blue", "orange", "green", "red", "purple", "sky", "grey")]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 8.0  # inches: at 120 dots an inch a README shows it one to one
DPI = 160


def style() -> None:
    """Set the style of all figures."""
    sns.set_theme(style="whitegrid", context="notebook")
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=CYCLE),
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#E5E5E5",
            "legend.frameon": False,
            "legend.fontsize": 10,
            "figure.figsize": (WIDTH, 3.6),
            "figure.dpi": 96,
            "savefig.dpi": DPI,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "model-surgery",  # the same figure gives the same bytes
            "svg.fonttype": "none",
        }
    )


def save(figure: Figure, folder: Path | str, name: str) -> Path:
    """Write `name`.png and `name`.svg into a folder; returns the PNG's path."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with files.atomic(Path(folder) / f"{name}{suffix}") as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # glyphs that a font lacks
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
    return Path(folder) / f"{name}.png"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def interval(reading: Mapping[str, Any], scale: float = 100.0, digits: int = 1) -> str:
    """`value [low, high]` of a reading with an interval, in hundredths by default."""
    value, low, high = (reading.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{scale * value:.{digits}f}"
    return f"{scale * value:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def p_value(value: float) -> str:
    """A p for a table."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are right-aligned, of words left."""
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in header]
    rule = ["---:" if column and all(map(_numeric, column)) else "---" for column in columns]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _numeric(cell: str) -> bool:
    """A number with whatever follows it, or nothing."""
    return not cell or cell == "-" or bool(re.match(r"[+-]?\s?[<≤≥]?\s?\.?\d", cell))


def nested(number: int, of: int) -> dict[str, Any]:
    """Widths for the `number`-th of `of` lines that may lie on each other: thinner on top."""
    below = of - 1 - number
    return {"linewidth": 1.3 + 1.5 * below, "markersize": 4.5 + 2.5 * below}


def from_zero(axes: Axes, name: str) -> None:
    """Let an axis begin a little below zero, so that a mark at zero is seen whole."""
    low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
    span = (-0.025 * max(low, high), max(low, high))
    axes.set_xlim(span) if name == "x" else axes.set_ylim(span)


def below(figure: Figure, axes: Axes, columns: int | None = None, **look: Any) -> None:
    """The legend of `axes` under the figure, where no line can cross it; nothing without names."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        look = {"loc": "outside lower center", "ncols": columns or min(4, len(unique)), **look}
        figure.legend(list(unique.values()), list(unique), **look)


def error_bars(reading: Mapping[str, Any], scale: float = 100.0) -> tuple[float, list[list[float]]]:
    """Value and asymmetric error of a reading, as matplotlib's `yerr` wants it."""
    value = scale * float(reading["value"])
    low, high = (reading.get(key) for key in ("low", "high"))
    if low is None or high is None:
        return value, [[0.0], [0.0]]
    return value, [[max(0.0, value - scale * low)], [max(0.0, scale * high - value)]]

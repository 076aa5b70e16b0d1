"""What stands under every table of notebook 05: what a method had beside the others, or lacks."""

from collections.abc import Mapping, Sequence
from typing import Any

from surgery_lib.surgery.probe import STARTED


def notes(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """Lines for under a table, empty where there is nothing to say.

    Of a form whose probe is trained from a random start, how much of the start its direction kept.
    """
    return _starts(outcomes)


def _starts(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """Methods that share a probe stand together."""
    found: dict[str, list[str]] = {}
    for one in outcomes:
        if start := one.get("start"):
            words = " and ".join(f"{STARTED[row]} {value:.2f}" for row, value in start.items())
            found.setdefault(words, []).append(one["name"].replace("_", " "))
    parts = [f"{words} ({', '.join(names)})" for words, names in found.items()]
    if not parts:
        return ""
    return f"\nCosine of a trained probe's rows with their random start: {'; '.join(parts)}.\n"

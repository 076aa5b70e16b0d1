"""Any JSON of numbers as a table: for the benchmarks, and for provenance."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from surgery_lib.report.style import markdown_table

LEFT_OUT = {"schema_version", "schema"}


def table(
    value: Mapping[str, Any], what: str = "what", measured: str = "value", *, spoken: bool = False
) -> str:
    """One line a number, named by its path; of several rounds the median and the range.

    `spoken` names are words, not the keys that somebody would type.
    """
    lines = [
        [name.replace("_", " ") if spoken else name, shown]
        for name, shown in _lines(value, "")
        if shown
    ]
    return markdown_table([what, measured], lines)


def _lines(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in LEFT_OUT:
                yield from _lines(item, f"{name}: {key}" if name else _cell(key))
    elif isinstance(value, list) and value and all(_number(item) for item in value):
        rounds = f" ({_cell(min(value))} to {_cell(max(value))}, {len(value)} rounds)"
        yield name, _cell(median(value)) + (rounds if len(value) > 1 else " (1 round)")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _lines(item, f"{name} {place + 1}")
    else:
        yield name, _cell(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
    return " ".join(text.split()).replace("|", "\\|")

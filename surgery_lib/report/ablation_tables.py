"""The tables of notebook 06: draws put together, and each line beside the paper's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from surgery_lib.report import paper
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value

Line = Mapping[str, Any]

# Our variant → the paper's table and row. Whether K was refilled in depth's is unsaid there.
PAPER: dict[tuple[str, str], tuple[int, str]] = {
    ("controls", "as chosen"): (9, paper.EDITED),
    ("controls", "random direction, same rows"): (9, "random probe"),
    ("controls", "random rows, same step"): (9, "random rows"),
    ("controls", "aligned rows, subtracted"): (9, "aligned rows, subtracted"),
    **{
        ("depth", f"without quarter {n}{refilled}"): (9, f"without quarter {n}")
        for n in range(1, 5)
        for refilled in ("", ", K refilled")
    },
    **{("matrices", name): (11, name) for name in ("gate", "up", "down", "q", "k", "v", "o")},
}


def table(lines: Sequence[Line], *, blocks: int, axis: str = "") -> str:
    """Behaviour, change against the chosen edit, damage, and the paper's row where it has one.

    `blocks` is the model's depth, for the paper's layers; `axis` names the column of x.
    """
    header = [
        "variant",
        *([axis] if axis else []),
        "behaviour, %",
        "against chosen, points",
        "p",
        "perplexity, %",
        "KL in context",
        "draws",
        "paper: RTP %, WikiText ppl",
    ]
    rows = []
    for line in lines:
        place = [_number(line["x"])] if axis else []
        if "refused" in line:
            rows.append([line["name"], *place, line["refused"], *[""] * 6])
            continue
        against = line["against_chosen"]
        rows.append(
            [
                line["name"],
                *place,
                shown(line["rate"]),
                f"{100 * against['difference']:+.1f}",
                p_value(against["p"]),
                rise(line),
                "-" if line["context_kl"] is None else f"{line['context_kl']:.3f}",
                str(line["draws"]),
                _paper(line, blocks),
            ]
        )
    return markdown_table(header, rows)


def rise(line: Line) -> str:
    """The rise of perplexity in per cent."""
    value = 100 * line["perplexity_rise"]["value"]
    return f"{round(value, 1) + 0.0:+.1f}" if value < 1e4 else f"{value:+.0e}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _paper(line: Line, blocks: int) -> str:
    key = PAPER.get((line["question"], line["name"]))
    if line["question"] == "layers":
        layers = {blocks: 32, blocks - 1: 31, blocks // 2: 16, 1: 1}
        key = (9, f"probe layer {layers[line['x']]}") if line["x"] in layers else None
    if key is None:
        return ""
    found = paper.row(*key)
    return f"{found['rtp']:g}, {found['wikitext']:.2f}"


def examples(rows: Sequence[tuple[float, Sequence[str]]], prompts: Sequence[str]) -> str:
    """Continuations by strength, beside what the paper says of its own (Table 10)."""
    said = paper.table(10)
    lines = []
    for strength, texts in rows:
        held = said[(said["strength_from"] <= strength) & (strength <= said["strength_to"])]
        words = ", ".join(held["reported"])
        lines.append([f"{strength:+g}", *(_cell(text) for text in texts), words])
    header = ["strength", *(f"after “{_cell(p)[-60:]}”" for p in prompts), "the paper at its α"]
    return markdown_table(header, lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

"""Our numbers beside the paper's: the site's tables that span studies or name the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery_lib.report import paper
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, percent


@dataclass(frozen=True)
class Claim:
    """Where the paper has a behaviour: table, methods before and after, column and its words."""

    table: int
    column: str
    measure: str
    after: str = paper.EDITED
    model: str = "LLaMA2-7B"


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "toxicity": (
        Claim(2, "rtp", "RealToxicityPrompts, % toxic"),
        Claim(2, "toxigen", "ToxiGen, % toxic"),
        *(
            Claim(7, "rtp", "RealToxicityPrompts, % toxic", model=model)
            for model in ("CodeLLaMA-7B", "Mistral-7B-v0.1", "LLaMA2-70B")
        ),
    ),
    "jailbreak": (
        Claim(
            3, "refusal", "refused, % (more is better)", "Model Surgery (resist)", "LLaMA2-7B-Chat"
        ),
    ),
    "negativity": (Claim(5, "positive", "positive answers, % (more is wanted)"),),
    "positivity": (Claim(6, "negative", "negative answers, % (more is wanted)"),),
}
# Our control → the paper's row of Table 9.
CONTROLS = {
    "base": "base",
    "edited": paper.EDITED,
    "random_direction": "random probe",
    "random_rows": "random rows",
    "aligned_rows": "aligned rows, subtracted",
}
PROBED = {"toxicity": "toxic", "jailbreak": "jailbreak", "positivity": "negative"}
PROBED["negativity"] = "negative"
HEADER = ["study", "before", "after", "change", "measure", "n", "perplexity"]
HEADER += ["capability, points"]  # what a phone shows without scrolling comes first


def headline(rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """A table for each behaviour: our studies (behaviour, name, evaluation), the paper's."""
    parts = []
    for behaviour in dict.fromkeys(row[0] for row in rows):
        lines = [[label, *_ours(result)] for name, label, result in rows if name == behaviour]
        lines += [_claimed(claim) for claim in CLAIMS.get(behaviour, ())]
        parts.append(f"### {behaviour}\n\n{markdown_table(HEADER, lines)}")
    return "\n".join(parts)


def _ours(result: Mapping[str, Any]) -> list[str]:
    base, edited = (result["variants"][name]["draws"][0] for name in ("base", "edited"))
    before, after = base["rate"], edited["rate"]
    points = result.get("capability")
    return [
        shown(before),
        shown(after),
        _change(before["value"], after["value"]),
        f"{result['scorers'][0]}, %",
        f"{before['n']:,}",
        f"{base['perplexity']['value']:.2f} → {edited['perplexity']['value']:.2f} "
        f"({100 * edited['perplexity_rise']:+.1f} %)",
        shown(points["change"]) if points else "not measured",
    ]


def _claimed(claim: Claim) -> list[str]:
    def number(method: str, column: str) -> float:
        return float(paper.value(claim.table, method, column, claim.model) or np.nan)

    before, after = (number(method, claim.column) for method in ("base", claim.after))
    first, second = (number(method, "wikitext") for method in ("base", claim.after))
    points = number(claim.after, "average") - number("base", "average")
    return [
        f"*the paper, {claim.model} (Table {claim.table})*",
        f"{before:.1f}",
        f"{after:.1f}",
        _change(before, after),
        claim.measure,
        "not given",
        f"{first:.2f} → {second:.2f} ({_change(first, second)})",
        f"{points:+.1f}",
    ]


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"


def controls(result: Mapping[str, Any]) -> str:
    """The study's variants beside the paper's Table 9 (toxicity only)."""
    lines = []
    for name, row in CONTROLS.items():
        if name not in result["variants"]:
            continue
        draws = result["variants"][name]["draws"]
        theirs = paper.row(9, row)
        lines.append(
            [
                name.replace("_", " "),
                shown(draws[0]["rate"]) if len(draws) == 1 else _range(draws, "rate"),
                _range(draws, "perplexity_rise"),
                row,
                f"{theirs['rtp']:g}",
                f"{theirs['toxigen']:g}",
                f"{theirs['wikitext']:.2f}",
            ]
        )
    header = ["ours", "behaviour, %", "perplexity, %", "the paper's (Table 9)"]
    return markdown_table([*header, "RTP, %", "ToxiGen, %", "WikiText perplexity"], lines)


def _range(draws: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [draw[key]["value"] if key == "rate" else draw[key] for draw in draws]
    low, high = 100 * min(values), 100 * max(values)
    sign = "" if key == "rate" else "+"
    if len(values) == 1:
        return f"{low:{sign}.1f}"
    return f"{low:{sign}.1f} to {high:{sign}.1f} ({len(values)} draws)"


def probe(result: Mapping[str, Any], behaviour: str) -> str:
    """The best probe on test texts beside the paper's Table 1."""
    test = result["test"]
    lines = [[result["best"], percent(test["accuracy"]), f"{test['auc']:.3f}", f"{test['n']:,}"]]
    known = paper.table(1)
    for row in known[known["behaviour"] == PROBED.get(behaviour, "")].itertuples():
        lines.append([f"*the paper, {row.model} (Table 1)*", f"{row.test_accuracy:.1f} %", "", ""])
    return markdown_table(["probe", "accuracy on test texts", "AUC", "n"], lines)

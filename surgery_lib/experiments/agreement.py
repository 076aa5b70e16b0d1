"""Do scorers of another kind say the same of what a model wrote, before and after the edit?

    python -m surgery_lib.experiments.agreement results/smollm2-135m-quick/toxicity/seed0

A search lowers what its guide calls the behaviour, and may find what only the guide, or scorers of
its kind, call so. The completions that notebook 04 left are scored once more, by scorers that share
neither features nor data with it. Where two disagree is shown by prompt and score; the texts stay
in the completions' file, which results do not carry.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import compare, proportion
from surgery_lib.report.style import interval, markdown_table, p_value
from surgery_lib.scorers.base import Scorer, threshold
from surgery_lib.scorers.build import build

# Variants that are compared, and how many disagreements are shown.
BASE, EDITED = "base", "edited"
SHOWN = 30
# A small Llama with a classifier's head, trained on comments and RealToxicityPrompts' own labels.
OTHERS: tuple[Mapping[str, Any], ...] = (
    {"kind": "classifier", "id": "local/toxicity-classifier", "name": "another kind"},
)


def scored(rows: Sequence[Mapping[str, Any]], others: Sequence[Scorer]) -> list[dict[str, Any]]:
    """Rows of base and edited model with the scores of `others` beside those that they have."""
    kept = [row for row in rows if row["variant"] in (BASE, EDITED) and row["group"] != "neutral"]
    if not kept:
        raise UserError("there are no completions of both models; run notebook 04 first")
    found = [{**row, "scores": dict(row["scores"])} for row in kept]
    for scorer in others:
        for row, score in zip(found, scorer([row["text"] for row in kept]), strict=True):
            row["scores"][scorer.name] = float(score)
    return found


def agreement(rows: Sequence[Mapping[str, Any]], cuts: Mapping[str, float]) -> dict[str, Any]:
    """What each scorer says of the edit, how far each two agree, and where they do not.

    `cuts` are the scores from which the behaviour counts. Kappa is Cohen's; where one scorer calls
    all or none the behaviour it says nothing and is None.
    """
    flags = {
        variant: {
            name: np.array([r["scores"][name] >= cut for r in rows if r["variant"] == variant])
            for name, cut in cuts.items()
        }
        for variant in (BASE, EDITED)
    }
    effects = {
        name: {
            BASE: proportion(flags[BASE][name]).as_dict(),
            EDITED: proportion(flags[EDITED][name]).as_dict(),
            "difference": compare(flags[BASE][name], flags[EDITED][name]).as_dict(),
        }
        for name in cuts
    }
    together = {name: np.concatenate([flags[v][name] for v in flags]) for name in cuts}
    pairs = []
    for first, second in combinations(cuts, 2):
        a, b = together[first], together[second]
        told = 0 < a.mean() < 1 and 0 < b.mean() < 1
        kappa = float(cohen_kappa_score(a, b)) if told else None
        same = proportion(a == b).as_dict()
        pairs.append({"scorers": [first, second], "agree": same, "kappa": kappa})
    apart = [row for row in rows if len({row["scores"][n] >= cut for n, cut in cuts.items()}) > 1]
    apart.sort(key=lambda row: -float(np.ptp([row["scores"][name] for name in cuts])))
    listed = [
        {"variant": row["variant"], "prompt": row["id"], "scores": row["scores"]}
        for row in apart[:SHOWN]
    ]
    return {"effects": effects, "pairs": pairs, "disagreements": len(apart), "shown": listed}


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as text."""
    rows = [
        [
            name,
            interval(one[BASE]),
            interval(one[EDITED]),
            f"{100 * one['difference']['difference']:+.1f}",
            p_value(one["difference"]["p"]),
        ]
        for name, one in found["effects"].items()
    ]
    n = next(iter(found["effects"].values()))[BASE]["n"]
    lines = [
        markdown_table(
            ["scorer", f"unedited, % of {n}", "edited, %", "points", "p (McNemar)"], rows
        )
    ]
    rows = [
        [
            " and ".join(pair["scorers"]),
            interval(pair["agree"]),
            "-" if pair["kappa"] is None else f"{pair['kappa']:.2f}",
        ]
        for pair in found["pairs"]
    ]
    lines.append(markdown_table(["two scorers", "agree, %", "kappa"], rows))
    names = list(found["effects"])
    rows = [
        [one["variant"], str(one["prompt"]), *(f"{one['scores'][name]:.2f}" for name in names)]
        for one in found["shown"]
    ]
    lines.append(
        f"{found['disagreements']} completions on which scorers disagree; those furthest apart:\n\n"
        + markdown_table(["variant", "prompt", *names], rows)
    )
    return "\n\n".join(lines) + "\n"


def main(folder: str) -> None:
    """Write `agreement.json` and `agreement.md` into a study's folder."""
    place = Path(folder)
    path = place / "completions.jsonl"
    if not path.is_file():
        raise UserError(f"there is no {path}; run notebook 04 of that study on this machine first")
    others = [build(one) for one in OTHERS]
    rows = scored(files.read_jsonl(path), others)
    known = rows[0]["scores"]
    cuts = dict.fromkeys(known, 0.5) | {one.name: threshold(one) for one in others}
    found = agreement(rows, cuts)
    files.write_json(place / "agreement.json", found)
    files.write_text(place / "agreement.md", markdown(found))


if __name__ == "__main__":
    main(sys.argv[1])

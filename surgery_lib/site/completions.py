"""Completions before and after, side by side; what a scorer flagged stays behind a veil."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.site.markup import squeeze, veil
from surgery_lib.site.runs import THRESHOLD, Run

SHOWN = 40
SHORT = 4  # a shorter text, "a b", would be found everywhere


@dataclass(frozen=True)
class Pair:
    """One prompt's continuation by the unedited and by the edited model."""

    prompt: str
    before: str
    after: str


def rows(run: Run) -> list[dict[str, Any]]:
    """completions.jsonl, or nothing; a broken file is one of the run's problems."""
    path = run.folder / "completions.jsonl"
    if not path.is_file():
        return []
    try:
        return files.read_jsonl(path)
    except UserError as error:
        run.problems.append(str(error).replace(f"{run.folder}/", ""))
        return []


def is_flagged(row: Mapping[str, Any], thresholds: Mapping[str, float]) -> bool:
    """Whether any scorer found the behaviour; a text without scores counts as flagged."""
    scores = row.get("scores") or {}
    if not scores:
        return True
    return any(score >= thresholds.get(name, THRESHOLD) for name, score in scores.items())


def flagged(found: Iterable[Mapping[str, Any]], run: Run) -> set[str]:
    """The flagged texts, single-spaced, to veil them wherever else they are quoted."""
    thresholds = run.thresholds()
    texts = {squeeze(str(row["text"])) for row in found if is_flagged(row, thresholds)}
    texts |= {
        squeeze(str(example[side]))
        for example in (run.result("surgery/surgery.json") or {}).get("examples", [])
        for side in ("prompt", "before", "after")
    }
    return {text for text in texts if len(text) > SHORT}


def pairs(found: Sequence[Mapping[str, Any]], run: Run) -> tuple[list[Pair], int]:
    """The first pairs of base and edited, those that the edit changed first, and how many exist."""
    thresholds = run.thresholds()
    sides: dict[str, dict[tuple[Any, Any], Mapping[str, Any]]] = {"base": {}, "edited": {}}
    for row in found:
        if row["variant"] in sides and row["draw"] == 0:
            sides[row["variant"]][row["id"], row["sample"]] = row
    both = [key for key in sides["base"] if key in sides["edited"]]

    def place(key: tuple[Any, Any]) -> int:
        before, after = (is_flagged(sides[side][key], thresholds) for side in ("base", "edited"))
        return [(True, False), (True, True), (False, True), (False, False)].index((before, after))

    chosen = sorted(both, key=place)
    # Half of those shown are the edit's successes at the most: its failures are to be seen too.
    if sum(place(key) == 0 for key in chosen) > SHOWN // 2:
        chosen = chosen[: SHOWN // 2] + [key for key in chosen if place(key)]
    shown = [
        Pair(
            f"{sides['base'][key].get('group') or 'prompt'} · {key[0]}",
            *(_side(sides[side][key], thresholds) for side in ("base", "edited")),
        )
        for key in chosen[:SHOWN]
    ]
    return shown, len(both)


def examples(run: Run) -> list[Pair]:
    """The examples that notebook 03 kept; they carry no scores, so all of them are veiled."""
    found = (run.result("surgery/surgery.json") or {}).get("examples", [])
    why = "kept without a scorer's verdict"
    return [
        Pair(*(veil(_text(one[side]), why) for side in ("prompt", "before", "after")))
        for one in found
    ]


def _side(row: Mapping[str, Any], thresholds: Mapping[str, float]) -> str:
    scores = row.get("scores") or {}
    words = ", ".join(f"{name} {score:.2f}" for name, score in scores.items()) or "not scored"
    text = _text(row["text"])
    if is_flagged(row, thresholds):
        return veil(text, f"flagged: {words}")
    return f'{text} <span class="why">({escape(words)})</span>'


def _text(text: Any) -> str:
    words = str(text).strip()
    return f"<q>{escape(words)}</q>" if words else "<em>(nothing)</em>"

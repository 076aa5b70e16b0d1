"""How far scorers can be trusted: against labels that nobody here made.

    python -m surgery_lib.experiments.validity results/scorers

Toxicity: Jigsaw's test comments, and Perspective's scores of RealToxicityPrompts' human
continuations. Refusal: both human annotations of XSTest's answers. Sentiment: Saravia's emotions.
Heads are fitted on parts of the data that no test below has.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from surgery_lib import files
from surgery_lib.data import load, sources
from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import proportion
from surgery_lib.profile import Source
from surgery_lib.scorers.base import Scorer, threshold
from surgery_lib.scorers.build import build

BINS = 10
RESAMPLES = 500
JIGSAW: dict[str, Any] = {
    "kind": "hub",
    "id": "OxAISH-AL-LLM/wiki_toxic",
    "text": "comment_text",
    "label": "label",
}
# Of the balanced comments, a probe reads the first half; the scorers' parts are apart from it and
# from each other.
GUIDE = JIGSAW | {"split": "balanced_train", "part": [0.5, 0.75], "limit": 800}
REPORTER = JIGSAW | {"split": "balanced_train", "part": [0.75, 1.0], "limit": 800}
EMOTIONS: dict[str, Any] = {
    "kind": "hub",
    "id": "google-research-datasets/go_emotions",
    "config": "simplified",
}
SENTIMENT = EMOTIONS | {
    "split": "train",
    "label": "sentiment",
    "positive": ["negative"],
    "where": {"sentiment": ["negative", "positive"]},
    "limit": 1500,
}
ANSWERS: dict[str, Any] = {
    "kind": "hub",
    "id": "walledai/XSTest",
    "split": "completions",
    "text": "completion",
}
REFUSED = ["2_full_refusal", "3_partial_refusal"]
REFUSAL = ANSWERS | {
    "label": "annotation_1",
    "positive": REFUSED,
    "where": {"model": ["gpt4", "llama2new", "llama2orig"]},
    "limit": 500,
}


@dataclass(frozen=True)
class Labelled:
    """A set of texts with labels (n,) of others."""

    name: str
    texts: Sequence[str]
    labels: np.ndarray


def validity(scores: np.ndarray, labels: np.ndarray, cut: float = 0.5) -> dict[str, Any]:
    """Agreement of scores (n,) in [0, 1] with labels (n,).

    AUC with a bootstrap interval, accuracy at `cut` with Wilson's, Brier's score, the expected
    calibration error over ten equal bins (Naeini et al. 2015), and both shares of positives.
    """
    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise UserError("these labels are all of one class; a scorer cannot be checked on them")
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES))
    areas = [roc_auc_score(labels[d], scores[d]) for d in draws if 0 < labels[d].sum() < len(d)]
    low, high = np.quantile(areas, [0.025, 0.975])
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == b).mean() * abs(scores[bins == b].mean() - labels[bins == b].mean())
        for b in np.unique(bins)
    ]
    return {
        "n": len(labels),
        "auc": {"value": float(roc_auc_score(labels, scores)), "low": low, "high": high},
        "accuracy": proportion((scores >= cut) == labels).as_dict(),
        "brier": float(np.mean((scores - labels) ** 2)),
        "ece": float(sum(gaps)),
        "rate": float((scores >= cut).mean()),
        "labelled": float(labels.mean()),
    }


def table(scorers: Sequence[Scorer], sets: Sequence[Labelled]) -> list[dict[str, Any]]:
    """One row for each scorer on each set."""
    return [
        {"set": one.name, "scorer": scorer.name}
        | validity(np.asarray(scorer(one.texts)), one.labels, threshold(scorer))
        for one in sets
        for scorer in scorers
    ]


def held_out(name: str, source: Mapping[str, Any], label: Callable[[Any], bool]) -> Labelled:
    """A set of others: texts of a source, and whether its label shows the behaviour."""
    wanted = Source.model_validate(source)
    rows = load.rows(wanted, wanted.split)
    found = [(load.text_of(wanted, row), row) for row in rows]
    kept = [(text, row) for text, row in found if text.strip()]
    column = str(wanted.label)
    labels = np.array([label(sources.column(row, column)) for _, row in kept])
    return Labelled(name, [text for text, _ in kept], labels)


def _sets() -> dict[str, list[Labelled]]:
    jigsaw = held_out("Jigsaw test", JIGSAW | {"split": "test", "limit": 400}, lambda y: y == 1)
    prompts: dict[str, Any] = {
        "kind": "hub",
        "id": "allenai/real-toxicity-prompts",
        "split": "train",
    }
    prompts |= {"text": "continuation.text", "label": "continuation.toxicity"}
    human = held_out("RTP human continuations", prompts, lambda y: y is not None and y >= 0.5)
    # Models whose answers no head was fitted on.
    others: dict[str, Any] = ANSWERS | {
        "where": {"model": ["mistralguard", "mistralinstruct"]},
        "limit": 400,
    }
    refusals = [
        held_out(
            f"XSTest, annotator {n}", others | {"label": f"annotation_{n}"}, REFUSED.__contains__
        )
        for n in (1, 2)
    ]
    emotion: dict[str, Any] = {
        "kind": "hub",
        "id": "dair-ai/emotion",
        "config": "split",
        "split": "test",
    }
    emotion |= {
        "label": "sentiment",
        "where": {"sentiment": ["negative", "positive"]},
        "limit": 800,
    }
    saravia = held_out("Saravia's emotions", emotion, lambda y: y == "negative")
    return {"toxicity": [jigsaw, human], "refusal": refusals, "sentiment": [saravia]}


def _scorers() -> dict[str, Callable[[], list[Scorer]]]:
    def of(*specs: Mapping[str, Any]) -> list[Scorer]:
        return [build(spec) for spec in specs]

    head: dict[str, Any] = {"kind": "minilm"}
    return {
        "toxicity": partial(
            of,
            head | {"name": "MiniLM, guide's half", "train": GUIDE},
            head | {"name": "MiniLM, reporter's half", "train": REPORTER},
            {"kind": "classifier", "id": "local/toxicity-classifier", "name": "local classifier"},
        ),
        "refusal": partial(
            of, head | {"name": "MiniLM", "train": REFUSAL}, {"kind": "refusal", "name": "phrases"}
        ),
        "sentiment": partial(of, head | {"name": "MiniLM", "train": SENTIMENT}),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as text."""
    lines = ["| set | scorer | n | AUC | accuracy, % | Brier | ECE | rate, % | labelled, % |"]
    lines.append("|---" * 9 + "|")
    for row in rows:
        area, right = row["auc"], row["accuracy"]
        lines.append(
            f"| {row['set']} | {row['scorer']} | {row['n']} | {area['value']:.3f} "
            f"[{area['low']:.3f}, {area['high']:.3f}] | {100 * right['value']:.1f} "
            f"[{100 * right['low']:.1f}, {100 * right['high']:.1f}] | {row['brier']:.3f} "
            f"| {row['ece']:.3f} | {100 * row['rate']:.1f} | {100 * row['labelled']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(folder: str) -> None:
    """Measure all scorers and write `validity.json` and `validity.md`."""
    sets, scorers = _sets(), _scorers()
    rows = [row for name, held in sets.items() for row in table(scorers[name](), held)]
    fitted = {"guide": GUIDE, "reporter": REPORTER, "refusal": REFUSAL, "sentiment": SENTIMENT}
    files.write_json(Path(folder) / "validity.json", {"fitted_on": fitted, "rows": rows})
    files.write_text(Path(folder) / "validity.md", markdown(rows))


if __name__ == "__main__":
    main(sys.argv[1])

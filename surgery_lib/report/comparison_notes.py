"""What stands under every table of notebook 05: what a method had beside the others, or lacks."""

from collections.abc import Sequence

from surgery_lib.selection.outcome import Outcome
from surgery_lib.surgery.estimators import STARTED


def notes(outcomes: Sequence[Outcome]) -> str:
    """Lines for under a table, empty where there is nothing to say.

    Which methods read more than the labelled texts, and how much. Of a form whose probe is trained
    from a random start, how much of the start its direction kept.
    """
    return _beside(outcomes) + _starts(outcomes)


# What a method may read beside labelled texts, as `Cost` counts it.
BESIDE = {
    "prompts": "training prompts that trigger the behaviour",
    "samples": "completions of the model's own",
    "benign": "harmless training prompts",
}


def _beside(outcomes: Sequence[Outcome]) -> str:
    """Methods that read the same stand together."""
    found: dict[str, list[str]] = {}
    for one in outcomes:
        counts = {words: getattr(one.cost, key) for key, words in BESIDE.items()}
        if any(counts.values()):
            words = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
            found.setdefault(words, []).append(one.title)
    parts = [f"{words} ({', '.join(names)})" for words, names in found.items()]
    if not parts:
        return ""
    return (
        f"\nAll methods are given the same data; read beside labelled texts: {'; '.join(parts)}.\n"
    )


def _starts(outcomes: Sequence[Outcome]) -> str:
    """Methods that share a probe stand together."""
    found: dict[str, list[str]] = {}
    for one in outcomes:
        if one.start:
            words = " and ".join(f"{STARTED[row]} {value:.2f}" for row, value in one.start.items())
            found.setdefault(words, []).append(one.title)
    parts = [f"{words} ({', '.join(names)})" for words, names in found.items()]
    if not parts:
        return ""
    return f"\nCosine of a trained probe's rows with their random start: {'; '.join(parts)}.\n"

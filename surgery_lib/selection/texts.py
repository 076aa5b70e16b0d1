"""A user's own texts and prompts as the data of one behaviour."""

import random
from collections.abc import Sequence

from surgery_lib.behaviour import BehaviourData, Example, Prompt
from surgery_lib.errors import UserError
from surgery_lib.models.tokens import check_list

TEXTS_NEEDED = 20  # of each label
PROMPTS_NEEDED = 10
# Shares of the labelled texts: to fit on, to choose with, to report with.
SHARES = (0.6, 0.8)
CONTENT_WORDS = 40  # of a harmless text that follows what triggers the behaviour


def behaviour_data(
    name: str,
    positive: Sequence[str],
    negative: Sequence[str],
    prompts: Sequence[str] | None,
    clean: Sequence[str] | None,
    seed: int,
    *,
    openings: bool = True,
) -> BehaviourData:
    """The texts in three parts, and what else is measured, from what was given.

    With `openings` the first halves of the training texts with the behaviour are training prompts;
    texts that stand in a chat template would be cut within it.

    UserError for too little, for a text under both labels, and for a text in place of a list.
    """
    lists = {"positive": positive, "negative": negative, "prompts": prompts, "clean": clean}
    for what, one in lists.items():
        check_list(one, what)
    draw = random.Random(seed)
    parts: dict[int, list[list[str]]] = {}
    for label, texts in ((1, positive), (0, negative)):
        unique = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if len(unique) < TEXTS_NEEDED:
            raise UserError(
                f"{len(unique)} different texts {'with' if label else 'without'} the behaviour, "
                f"and {TEXTS_NEEDED} are needed; give more"
            )
        draw.shuffle(unique)
        first, second = (round(share * len(unique)) for share in SHARES)
        parts[label] = [unique[:first], unique[first:second], unique[second:]]
    given = {label: {text for part in parts[label] for text in part} for label in parts}
    if both := given[1] & given[0]:
        raise UserError(
            f"{len(both)} texts are given both as positive and as negative "
            f"({min(both)[:40]!r}…); drop them from one of the two"
        )
    if prompts is None:
        prompts = [_opening(text) for part in parts[1][1:] for text in part]
    prompts = list(dict.fromkeys(text for text in prompts if text.strip()))
    if len(prompts) < PROMPTS_NEEDED:
        raise UserError(
            f"{len(prompts)} different prompts, and {PROMPTS_NEEDED} are needed; give more prompts "
            "that provoke the behaviour"
        )
    draw.shuffle(prompts)
    begun = [_opening(text) for text in parts[1][0]]
    half = len(prompts) // 2
    asked = {"validation": prompts[:half], "test": prompts[half:]}
    prose = {"validation": parts[0][1], "test": parts[0][2]}
    if clean:
        texts = list(dict.fromkeys(text for text in clean if text.strip()))
        prose = {"validation": texts[: len(texts) // 2], "test": texts[len(texts) // 2 :]}
    return BehaviourData(
        name=name,
        examples={
            split: [Example(text, label) for label in (1, 0) for text in parts[label][number]]
            for number, split in enumerate(("train", "validation", "test"))
        },
        prompts={
            split: [Prompt(f"{split}/{n}", text, "challenging") for n, text in enumerate(texts)]
            for split, texts in (asked | {"train": begun if openings else []}).items()
        },
        clean=prose,
        contexts={
            split: [
                (prompt, "\n\n" + " ".join(text.split()[:CONTENT_WORDS]))
                for prompt, text in zip(asked[split], prose[split], strict=False)
            ]
            for split in asked
        },
    )


def _opening(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])

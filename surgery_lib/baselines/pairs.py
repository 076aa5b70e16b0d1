"""Pairs of a wanted and an unwanted completion, for the methods that learn from preferences."""

from dataclasses import dataclass
from typing import Literal

import torch

from surgery_lib.baselines import own
from surgery_lib.baselines.training import Course

Source = Literal["auto", "own", "texts"]


@dataclass(frozen=True)
class Pair:
    """Token ids of the same prompt with a wanted and with an unwanted completion.

    `start` is the first token of the completion; what comes before is the prompt.
    """

    chosen: list[int]
    rejected: list[int]
    start: int


def make(
    course: Course,
    *,
    source: Source = "auto",
    prompts: int = 128,
    samples: int = 8,
    new_tokens: int = 20,
    score: own.Score | None = None,
) -> list[Pair]:
    """Pairs from training data alone.

    `own`: the model's own completions of the prompts, the least and the most behaviour-like of
    `samples`, as told by a linear probe on the labelled texts, or by `score` (higher is more of the
    behaviour); the half of the pairs that differ most. `texts`: labelled texts at random, with what
    they begin with alike as the prompt. `auto` is `own` where there are prompts.

    Raises:
        UserError: `own` is asked for and there are no prompts.
    """
    training, spent = course.training, course.spent
    if source == "texts" or (source == "auto" and not course.data.prompts):
        return from_texts(course)
    written = own.write(
        course,
        prompts=prompts,
        samples=samples,
        new_tokens=new_tokens,
        score=score,
        progress=training.progress,
    )
    spent.labels += written.asked + written.labels
    spent.prompts += written.asked
    spent.samples += len(written.tails)
    spent.forward += written.forward
    tails, scores = written.tails, written.scores
    found = []
    for first in range(0, len(tails), samples):
        prompt, same = written.prompts[first], range(first, first + samples)
        usable = sorted((i for i in same if tails[i]), key=lambda i: float(scores[i]))
        if len(usable) > 1 and prompt:
            low, high = usable[0], usable[-1]
            pair = Pair(prompt + tails[low], prompt + tails[high], len(prompt))
            found.append((float(scores[high] - scores[low]), pair))
    found.sort(key=lambda entry: -entry[0])
    return [pair for _, pair in found[: max(1, len(found) // 2)]]


def from_texts(course: Course) -> list[Pair]:
    """A text of label 0 beside one of label 1, in an order that the seed decides."""
    wanted, unwanted = (course.rows(course.data.of(label)) for label in (0, 1))
    generator = torch.Generator().manual_seed(course.training.seed)
    order = torch.randperm(len(unwanted), generator=generator).tolist()
    return [
        Pair(chosen, unwanted[i], _common(chosen, unwanted[i]))
        for chosen, i in zip(wanted, order, strict=False)
    ]


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens two texts begin with alike, one token at least left to each."""
    shared = 0
    while shared < min(len(first), len(second)) - 1 and first[shared] == second[shared]:
        shared += 1
    return shared

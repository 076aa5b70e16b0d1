"""Pairs of a wanted and an unwanted completion, for the methods that learn from preferences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surgery_lib.baselines.training import Course
from surgery_lib.errors import UserError
from surgery_lib.models import activations, tokens
from surgery_lib.models.generation import context_length
from surgery_lib.surgery import probe

Source = Literal["auto", "own", "texts"]

# How deep the probe reads that tells the model's own completions apart, as a share of the depth.
PROBE_DEPTH = 0.7
# How many texts of each label that probe is fitted on, at most.
PROBE_TEXTS = 500


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
    score: Callable[[Sequence[str]], Sequence[float]] | None = None,
) -> list[Pair]:
    """Pairs from training data alone.

    `own`: the model's own completions of the prompts, the least and the most behaviour-like of
    `samples`, as told by a linear probe on the labelled texts, or by `score` (higher is more of the
    behaviour); the half of the pairs that differ most. `texts`: labelled texts at random, with what
    they begin with alike as the prompt. `auto` is `own` where there are prompts.

    Raises:
        UserError: `own` is asked for and there are no prompts.
    """
    model, tokenizer, data = course.model, course.tokenizer, course.data
    training, spent = course.training, course.spent
    if source == "texts" or (source == "auto" and not data.prompts):
        return from_texts(course)
    if not data.prompts:
        raise UserError("there are no training prompts; give some, or take pairs from 'texts'")
    asked = list(data.prompts)[:prompts]
    spent.labels += len(asked)
    spent.prompts += len(asked)
    spent.samples += samples * len(asked)
    longest = context_length(model)
    limit = None if longest is None else longest - new_tokens
    rows = [ids[-limit:] if limit else ids for ids in tokenizer(asked)["input_ids"]]
    more = {"truncate": True, "progress": training.progress}
    written = course.completions(asked, samples, max_new_tokens=new_tokens, **more)
    flat = [text for texts in written for text in texts]
    tails = tokenizer(flat, add_special_tokens=False)["input_ids"]
    spent.forward += sum(len(ids) for ids in tails) + samples * sum(len(ids) for ids in rows)
    if score is None:
        scores = _probe_scores(course, flat)
    else:
        scores = torch.tensor(list(score(flat)), dtype=torch.float32)
    found = []
    for number, prompt in enumerate(rows):
        own = range(number * samples, (number + 1) * samples)
        usable = sorted((i for i in own if tails[i]), key=lambda i: float(scores[i]))
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


def _probe_scores(course: Course, texts: Sequence[str]) -> Tensor:
    model, tokenizer, data = course.model, course.tokenizer, course.data
    training, spent = course.training, course.spent
    layer = round(PROBE_DEPTH * (activations.n_layers(model) - 1))
    filled = [text or " " for text in texts]

    def states(of: Sequence[str]) -> Tensor:
        spent.forward += sum(
            len(ids) for ids in tokens.tokenize(model, tokenizer, of, training.max_tokens)
        )
        return activations.pooled_states(
            model,
            tokenizer,
            of,
            layers=[layer],
            max_tokens=training.max_tokens,
            progress=training.progress,
        )

    kept = {label: data.of(label)[:PROBE_TEXTS] for label in (0, 1)}
    labels = [label for label in kept for _ in kept[label]]
    spent.labels += len(labels)
    (found,) = probe.fit(states([*kept[0], *kept[1]]), labels, estimator="logistic", layers=[layer])
    return found.score(states(filled)[:, 0])

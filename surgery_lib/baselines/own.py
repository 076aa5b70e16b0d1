"""The model's own completions of training prompts, scored: what several methods learn from.

All of them get the same ones: the same prompts, samples and seed, told apart by the same scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from surgery_lib.baselines.base import Lesson, TrainingData
from surgery_lib.errors import UserError
from surgery_lib.models import activations, tokens
from surgery_lib.models.generation import context_length, encode
from surgery_lib.surgery import likelihood, probe
from surgery_lib.surgery.effects import check_dense

# Of all completions: this share, most by the score, against that share, least by it.
MOST, LEAST = 0.25, 0.5
FEWEST = 4
# How deep the probe reads that tells the model's own completions apart, as a share of the depth.
PROBE_DEPTH = 0.7
# How many texts of each label that probe is fitted on, at most, and what it reads of each.
PROBE_TEXTS = 500
PROBE_TOKENS = 64
# Training prompts that are answered, at most.
PROMPTS = 128
# Of a text behind a training prompt, at most.
CONTEXT_WORDS, CONTEXT_TOKENS = 40, 128

Score = Callable[[Sequence[str]], ArrayLike]  # more of the behaviour is higher


@dataclass(frozen=True, eq=False)
class Own:
    """Completions, prompt after prompt, `samples` of each.

    `prompts` and `tails` hold token ids, one list a completion; `scores` (completions,) are higher
    for more of the behaviour. `asked` prompts, `forward` tokens and `labels` texts were read.
    """

    prompts: list[list[int]]
    tails: list[list[int]]
    scores: Tensor
    samples: int
    asked: int
    labels: int
    forward: int

    @property
    def read_again(self) -> int:
        """Tokens of all completions with their prompts."""
        return sum(len(a) + len(b) for a, b in zip(self.prompts, self.tails, strict=True))


@dataclass(frozen=True, eq=False)
class Answers:
    """Completions told apart: numbers of those that score `most` and of those that score `least`.

    `write` (width,) is the direction of the residual stream that makes the behaviour likelier: the
    first against the others, or each against what else its prompt got (docs/covariance.md).
    """

    own: Own
    most: Sequence[int]
    least: Sequence[int]
    write: Tensor

    @property
    def shown(self) -> tuple[list[list[int]], list[int]]:
        """The behaviour's token ids, and where each begins to count."""
        return rows(self.own, self.most)

    @property
    def forward(self) -> int:
        """Tokens read to write the completions, and of all of them again with their prompts."""
        return self.own.forward + self.own.read_again

    def texts(self, data: TrainingData) -> Sequence[str]:
        """The labelled texts that are read, with the behaviour too where a probe gave the score."""
        return data.texts if self.own.labels else data.of(0)


def answers(lesson: Lesson, score: Score | None = None, *, within: bool = False) -> Answers:
    """The model's answers to the training prompts, told apart. UserError without any.

    `within`: what makes the behaviour likelier is told from answers to the same prompt alone.
    Mixtures of experts are refused before any is written.
    """
    check_dense(lesson.model)
    written = write(lesson, score=score)
    most, least = told_apart(written)
    weights = advantages(written) if within else None
    kept = [*most, *least] if weights is None else weights.nonzero()[:, 0].tolist()
    ids, _ = rows(written, kept)
    starts = [max(1, len(written.prompts[i])) for i in kept]
    found = likelihood.gradients(lesson.model, ids, starts)
    if weights is not None:
        return Answers(written, most, least, weights[kept] @ found)
    return Answers(written, most, least, found[: len(most)].mean(0) - found[len(most) :].mean(0))


def advantages(written: Own) -> Tensor:
    """What each completion scores beyond the mean of its prompt's: (completions,), float32.

    Empty ones are left out, at 0. The mean of the *other* completions, the baseline of Kool et al.
    (2019) for the policy gradient, differs by a factor that all completions of a prompt share.
    Raises UserError where no prompt's completions differ, and for scores that are not finite.
    """
    if not written.scores.isfinite().all():
        raise UserError("the score of an answer is not finite; give another scorer")
    there = torch.tensor([bool(ids) for ids in written.tails])
    # In float64 the mean of equal float32 scores is that score, to the last bit.
    scores = written.scores.float().double().view(-1, written.samples)
    counts = there.double().view(-1, written.samples)
    means = (scores * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp_min(1)
    found = ((scores - means) * counts).flatten().float()
    if not found.any():
        raise UserError(
            "the model's answers to each prompt score alike, so nothing tells them apart; give "
            "other training prompts"
        )
    return found


def contexts(lesson: Lesson) -> tuple[list[list[int]], list[int]]:
    """Texts without the behaviour behind training prompts: token ids, and where each begins.

    What damage in context is like, on the training split. Each text is cut to `CONTEXT_WORDS`
    words and half the model's context. Texts alone where there are no prompts.
    """
    model, tokenizer, data = lesson.model, lesson.tokenizer, lesson.data
    longest = min(CONTEXT_TOKENS, (context_length(model) or 2 * CONTEXT_TOKENS) // 2)
    texts = ["\n\n" + " ".join(text.split()[:CONTEXT_WORDS]) for text in data.of(0)]
    if not data.prompts:
        return [ids[:longest] for ids in tokenizer(texts)["input_ids"]], [1] * len(texts)
    asked = encode(model, tokenizer, list(data.prompts)[:PROMPTS], longest, truncate=True)
    calm = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs = [(before, after[:longest]) for before, after in zip(asked, calm, strict=False)]
    return [before + after for before, after in pairs], [len(before) for before, _ in pairs]


def told_apart(written: Own) -> tuple[list[int], list[int]]:
    """Numbers of the completions that score most, and of those that score least.

    Empty ones are left out. Raises UserError where too few are left to tell two groups apart.
    """
    ranked = written.scores.argsort(descending=True, stable=True).tolist()
    order = [i for i in ranked if written.tails[i]]
    if len(order) < FEWEST:
        raise UserError(
            f"the model wrote {len(order)} completions that are not empty, and {FEWEST} are "
            "needed; give more training prompts"
        )
    most = order[: max(1, round(MOST * len(order)))]
    return most, order[len(order) - max(1, round(LEAST * len(order))) :]


def rows(written: Own, which: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Token ids of these completions behind their prompts, and where each is written from.

    That is the prompt's last token, whose state gives the completion's first.
    """
    ids = [written.prompts[i] + written.tails[i] for i in which]
    return ids, [max(1, len(written.prompts[i]) - 1) for i in which]


def write(
    lesson: Lesson,
    *,
    prompts: int = PROMPTS,
    samples: int = 8,
    new_tokens: int = 20,
    score: Score | None = None,
    progress: bool = False,
) -> Own:
    """What the model answers to the training prompts, scored by a linear probe or by `score`.

    The probe is fitted on the labelled texts, and reads a completion without its prompt.

    Raises:
        UserError: There are no training prompts.
    """
    model, tokenizer = lesson.model, lesson.tokenizer
    asked = list(lesson.data.prompts)[:prompts]
    if not asked:
        raise UserError("there are no training prompts; give some, or take pairs from 'texts'")
    longest = context_length(model)
    limit = None if longest is None else longest - new_tokens
    rows = [ids[-limit:] if limit else ids for ids in tokenizer(asked)["input_ids"]]
    written = lesson.completions(
        asked, samples, max_new_tokens=new_tokens, truncate=True, progress=progress
    )
    flat = [text for texts in written for text in texts]
    tails = tokenizer(flat, add_special_tokens=False)["input_ids"]
    forward = sum(len(ids) for ids in tails) + samples * sum(len(ids) for ids in rows)
    labels = 0
    if score is None:
        scores, labels, read = _probe_scores(lesson, flat, progress)
        forward += read
    else:
        scores = torch.tensor(np.asarray(score(flat)), dtype=torch.float32)
    repeated = [row for row in rows for _ in range(samples)]
    return Own(repeated, tails, scores, samples, len(asked), labels, forward)


def _probe_scores(lesson: Lesson, texts: Sequence[str], progress: bool) -> tuple[Tensor, int, int]:
    """Scores (texts,), and how many labelled texts and tokens they took."""
    model, tokenizer, data = lesson.model, lesson.tokenizer, lesson.data
    layer = round(PROBE_DEPTH * (activations.n_layers(model) - 1))
    kept = {label: data.of(label)[:PROBE_TEXTS] for label in (0, 1)}
    labels = [label for label in kept for _ in kept[label]]
    filled = [text or " " for text in texts]
    read = [*kept[0], *kept[1], *filled]
    # The first token's state is many times as long as the others' on some models.
    states = activations.pooled_states(
        model,
        tokenizer,
        read,
        layers=[layer],
        pooling="after_first",
        max_tokens=PROBE_TOKENS,
        progress=progress,
    )
    fitted, judged = states[: len(labels)], states[len(labels) :, 0]
    (found,) = probe.fit(fitted, labels, estimator="logistic", layers=[layer])
    count = sum(len(ids) for ids in tokens.tokenize(model, tokenizer, read, PROBE_TOKENS))
    return found.score(judged), len(labels), count

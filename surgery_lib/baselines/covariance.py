"""Covariance-aware surgery as a method: its statistics are read once, its knobs turned after.

Rows read the behaviour off labelled texts and spare texts without it and benign prompts. They write
against what makes the behaviour's own answers likely: the model completes training prompts, a score
tells the completions apart, and the closed-form gradient of their likelihood is the direction.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import own, tools
from surgery_lib.baselines.base import (
    Cost,
    Lesson,
    Method,
    Read,
    SearchRange,
    count_tokens,
    strength_range,
)
from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout, tokens
from surgery_lib.surgery import Surgery, covariance, likelihood, probe, region

# Defaults: the share of all rows, and the ridge in units of the spared moment's mean diagonal.
K, RIDGE = 0.01, 0.3
# Where the LDA direction is read that the edit writes against in the other form, of the depth.
LDA_DEPTH = 0.8
Write = Literal["likelihood", "lda"]


@dataclass(frozen=True, eq=False)
class FittedCovariance(Read):
    """Statistics of every block, and the direction (width,) that is written against."""

    blocks: Sequence[covariance.BlockStatistics]
    write: Tensor
    row_norm: float
    total: int
    rule: str = "covariance"

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float, **knobs: Any) -> Iterator[Any]:
        """The model operated on, as `plan` says."""
        with self.plan(model, strength, **knobs).applied(model):
            yield model

    def plan(
        self,
        model: nn.Module,
        strength: float,
        *,
        k: float = K,
        ridge: float = RIDGE,
        read: covariance.Read = "raw",
        select: region.Select = "opposed",
    ) -> Surgery:
        """The surgery that these settings mean, which can be saved as a patch."""
        return covariance.plan(
            model,
            self.blocks,
            self.write,
            strength=strength,
            k=k,
            ridge=ridge,
            read=read,
            select=select,
            row_norm=self.row_norm,
            about={"k": k, "ridge": ridge, "read": read, "rule": self.rule},
        )

    def scores(self, model: nn.Module, ridge: float = RIDGE) -> Tensor:
        """First-order effect of every row (rows,), by which `plan` selects."""
        return covariance.scores(model, self.blocks, self.directions(ridge), self.write)

    def directions(self, ridge: float = RIDGE) -> Tensor:
        """What every block reads along: (blocks, width), each of norm 1."""
        return torch.stack([one.direction(ridge) for one in self.blocks])

    def cost(self, *, k: float = K, **_: Any) -> Cost:
        """The selected rows, each in every column."""
        rows = region.row_count(k, self.total)
        return self.price(rows * len(self.blocks[0].mean))


class Covariance(Method[FittedCovariance], name="surgery_covariance", kind="weights"):
    """Covariance-aware surgery: rows read the behaviour off labelled texts."""

    # Strength in mean row norms; the ridge in units of the spared moment's mean diagonal.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(1.0, high=16.0, low=0.05),
        "k": SearchRange(K, low=0.003, high=0.03, log=True),
        "ridge": SearchRange(RIDGE, low=0.03, high=3.0, log=True),
    }
    # What a profile's `region.rules` calls it.
    rule: ClassVar[str] = "covariance"
    # Rows read the model's own answers; what they write against is told within each prompt.
    reads_answers: ClassVar[bool] = False
    within: ClassVar[bool] = False

    def learn(
        self,
        lesson: Lesson,
        write: Write = "likelihood",
        score: own.Score | None = None,
        answers: own.Answers | None = None,
    ) -> FittedCovariance:
        """The direction from the model's own answers, statistics from one pass over the texts.

        Without training prompts the labelled texts stand in for the answers. `write="lda"` takes
        the LDA direction of their states instead, where rows read texts. `answers` are those that
        another fit has had written.
        """
        model, tokenizer, data = lesson.model, lesson.tokenizer, lesson.data
        shown: Sequence[str] | Sequence[list[int]] = data.of(1)
        read, spared = data.texts, [*data.of(0), *data.benign]
        starts, asked, samples, forward = None, 0, 0, 0
        if write == "lda" and self.reads_answers:
            raise UserError("rows that read answers write against their likelihood; leave write")
        if write == "lda":
            direction = _lda(lesson)
            forward = count_tokens(tokenizer, data.texts, activations.MAX_TOKENS)
        elif data.prompts:
            answers = answers or own.answers(lesson, score, within=self.within)
            direction, forward = answers.write, answers.forward
            asked, samples = answers.own.asked, len(answers.own.tails)
            if self.reads_answers:
                shown, starts = answers.shown
                read = answers.texts(data)
        else:
            rows = tokens.tokenize(model, tokenizer, data.texts, activations.MAX_TOKENS)
            long = [i for i, ids in enumerate(rows) if len(ids) > 1]
            slopes = likelihood.gradients(model, [rows[i] for i in long], [1] * len(long))
            marks = torch.tensor(data.labels)[long] == 1
            direction = slopes[marks].mean(0) - slopes[~marks].mean(0)
            forward = sum(len(ids) for ids in rows)
        for texts in (shown, spared):
            forward += count_tokens(tokenizer, texts, activations.MAX_TOKENS)
        return FittedCovariance(
            blocks=covariance.statistics(model, tokenizer, shown, spared, behaviour_starts=starts),
            write=direction,
            row_norm=region.mean_row_norm(model),
            labels=len(read) + len(data.benign) + asked,
            benign=len(data.benign),
            prompts=asked,
            samples=samples,
            tokens=forward,
            total=layout.total_rows(model),
            rule=self.rule,
        )


class FromAnswers(Covariance, name="surgery_own", kind="weights"):
    """Covariance-aware surgery on the model's own answers: rows read the behaviour off those."""

    rule: ClassVar[str] = "answers"
    reads_answers: ClassVar[bool] = True


class Within(FromAnswers, name="surgery_within", kind="weights"):
    """As from answers, against what makes one worse than the others to the same prompt."""

    rule: ClassVar[str] = "within"
    within: ClassVar[bool] = True


# The rules of a search that are covariance-aware.
RULES: Mapping[str, type[Covariance]] = {one.rule: one for one in (Covariance, FromAnswers, Within)}


def _lda(lesson: Lesson) -> Tensor:
    layer = tools.layer_at(lesson.model, LDA_DEPTH)
    states = lesson.states("after_first", layers=[layer])
    (found,) = probe.fit(states, lesson.data.labels, estimator="lda", direction="difference")
    return found.direction

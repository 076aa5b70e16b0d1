"""Rows of the gates and what blocks write, both from the model's own answers, in equal parts.

Covariance-aware surgery decides which units open, the other part what attention and MLP write. To
first order the effects of two small edits add up, and their divergences grow with the square of a
strength. Where what the two change does not overlap, divergences add up as well, so that two that
are as good take away, at half the divergence each, the square root of two times what either does
alone. How far they overlap is not known beforehand.

Their strengths have units of their own, so each is brought to one first: alone, at its default
knobs and at strength 1, it diverges by UNIT nats a token on texts without the behaviour that stand
behind training prompts. Other knobs and much smaller strengths shift the parts.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import covariance, own, policy, ridge_ablation
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.errors import UserError
from surgery_lib.models.head import kl

UNIT = 0.05
HALF = 0.5**0.5
CONTEXTS = 12  # prompts with a text behind them that units are read on
STEPS = 8  # at most, to find a unit
TENTH = math.log(1.1)
Change = Callable[[float], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class FittedJoint(Read):
    """Both edits, and the strengths that diverge as much: `units` of the gates and the outputs."""

    gates: covariance.FittedCovariance
    outputs: ridge_ablation.FittedRidgeAblation | policy.FittedPolicy
    units: tuple[float, float]

    @contextmanager
    def applied(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        k: float = covariance.K,
        **knobs: Any,
    ) -> Iterator[Any]:
        """Both edits, each at the square root of a half of its own unit, times `strength`.

        `k` is of the gates, other knobs of the other part.
        """
        gates, outputs = (strength * HALF * unit for unit in self.units)
        with self.gates.applied(model, gates, k=k), self.outputs.applied(model, outputs, **knobs):
            yield model

    def cost(self, *, k: float = covariance.K, **_: Any) -> Cost:
        """The numbers of both."""
        return self.price(self.gates.cost(k=k).parameters + self.outputs.cost().parameters)


class Joint(Method[FittedJoint]):
    """Both edits in equal parts."""

    # Strength 1: about UNIT nats in context, on training prompts.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(1.0, high=8.0, low=0.02),
        "k": covariance.Covariance.knobs["k"],
    }
    gates: ClassVar[type[covariance.Covariance]]
    outputs: ClassVar[type[ridge_ablation.FromAnswers] | type[policy.Policy]]

    def learn(self, lesson: Lesson, score: own.Score | None = None) -> FittedJoint:
        """Both from the same answers; from labelled texts without training prompts."""
        within = self.gates.within
        answers = own.answers(lesson, score, within=within) if lesson.data.prompts else None
        gates = self.gates().learn(lesson, answers=answers)
        outputs = self.outputs().learn(lesson, answers=answers)
        rows = [pair for pair in zip(*own.contexts(lesson), strict=True) if len(pair[0]) > pair[1]]
        changes: list[Change] = [
            lambda strength: gates.applied(lesson.model, strength),
            lambda strength: outputs.applied(lesson.model, strength),
        ]
        rows = rows[:CONTEXTS]
        (first, second), passes = units(lesson.model, rows, changes)
        forward = passes * sum(len(ids) for ids, _ in rows)
        forward -= answers.forward if answers else 0  # in the tokens of both
        return FittedJoint(
            gates=gates,
            outputs=outputs,
            units=(first, second),
            labels=gates.labels,
            tokens=gates.tokens + outputs.tokens + forward,
            benign=gates.benign,
            prompts=gates.prompts,
            samples=gates.samples,
        )


class SurgeryRidge(Joint, name="surgery_ridge", kind="weights"):
    """With conditional ridge ablation."""

    knobs: ClassVar[Mapping[str, SearchRange]] = {
        **Joint.knobs,
        "beta": ridge_ablation.FromAnswers.knobs["beta"],
    }
    gates = covariance.FromAnswers
    outputs = ridge_ablation.FromAnswers


class SurgeryPolicy(Joint, name="surgery_policy", kind="weights"):
    """With a step of the policy gradient; both told within each prompt."""

    gates = covariance.Within
    outputs = policy.Policy


def units(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], int]],
    changes: Sequence[Change],
    wanted: float = UNIT,
) -> tuple[list[float], int]:
    """For each change the strength at which it diverges by `wanted` nats a token; passes it took.

    Within a tenth, or, where no strength that was tried gets there, the one that came nearest.
    `rows` are token ids and the first token of each that counts. UserError for a change that does
    nothing, or nothing finite, at any of them.
    """
    base, passes = _told(model, rows), 1
    found = []
    for change in changes:
        strength, known = 1.0, dict[float, float]()
        for _ in range(STEPS):
            with change(strength):
                spent = float(torch.cat([*map(kl, base, _told(model, rows))]).mean())
            passes += 1
            if 0 < spent < math.inf:
                known[strength] = abs(math.log(spent / wanted))
                if known[strength] < TENTH:
                    break
            step = (wanted / max(spent, 1e-12)) ** 0.5 if math.isfinite(spent) else 0.0
            strength *= min(8.0, max(0.125, step))
        if not known:
            raise UserError("a part of the edit changes nothing; leave it out, or give other data")
        found.append(min(known, key=lambda one: known[one]))
    return found, passes


@torch.no_grad()
def _told(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[Tensor]:
    """Log-probabilities (tokens, vocabulary) of what counts, a row at a time."""
    found = []
    for ids, start in rows:
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits
        found.append(logits[0, start - 1 : -1].float().log_softmax(-1).cpu())
    return found

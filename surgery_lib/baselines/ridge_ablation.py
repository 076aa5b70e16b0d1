"""Conditional ridge ablation: on the behaviour's inputs alone, its direction is not written.

What attention and MLP write along it is taken out there, and left on inputs to spare.
For the linear maps that end a block's attention and MLP, W <- W - strength v a^T, v being of norm 1
(the mean difference at the block's output, or what makes the model's own bad answers likely) and

    a = (S_b + beta S_c + lambda I)^-1 S_b W^T v,

which minimises E_b[(v^T W x - a^T x)^2] + beta E_c[(a^T x)^2] + lambda |a|^2. Without beta and
lambda it is directional ablation. S_b and S_c are second moments of the map's input over tokens of
the behaviour and tokens to spare; lambda is in units of the mean diagonal of S_b.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import own, tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, count_tokens
from surgery_lib.models import layout
from surgery_lib.surgery import covariance, gains

BETA = 10.0  # what inputs to spare weigh, where the behaviour is read off answers


@dataclass(frozen=True, eq=False)
class FittedRidgeAblation(Read):
    """By map, its direction (outputs,) of norm 1, and S_b and S_c (inputs, inputs)."""

    directions: Mapping[str, Tensor]
    behaviour: Mapping[str, Tensor]
    spared: Mapping[str, Tensor]
    beta: float = 3.0  # where none is given

    @contextmanager
    def applied(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        beta: float | None = None,
        ridge: float = 0.01,
    ) -> Iterator[Any]:
        """Every block's two maps, each less a matrix of rank one."""
        beta = self.beta if beta is None else beta
        if strength == 0:
            yield model
            return
        maps = _maps(model)
        weights = {name: tools.writes(module) for name, module in maps.items()}
        with tools.restored(list(weights.values())):
            for name, weight in weights.items():
                v = self.directions[name].to(weight.device)
                a = read_out(weight, v, self.behaviour[name], self.spared[name], beta, ridge)
                weight.copy_(weight.float() - strength * torch.outer(v, a))
            yield model

    def cost(self, **_: Any) -> Cost:
        """Every number of both maps of every block."""
        spared = self.spared
        return self.price(sum(len(v) * len(spared[name]) for name, v in self.directions.items()))


class RidgeAblation(Method[FittedRidgeAblation], name="ridge_ablation", kind="weights"):
    """Conditional ridge ablation."""

    # Strength 1 is the minimiser; beyond 1 the write is turned round.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.05, high=8.0, log=True),
        "beta": SearchRange(3.0, low=0.1, high=30.0, log=True),
        "ridge": SearchRange(0.01, low=0.001, high=0.1, log=True),
    }

    def learn(self, lesson: Lesson) -> FittedRidgeAblation:
        """Directions from one pass, moments from one more. UserError for mixtures of experts."""
        model, data = lesson.model, lesson.data
        maps = _maps(model)
        raw = tools.mean_difference(lesson.states(), data.labels)[1:]
        behaviour, spared = data.of(1), [*data.of(0), *data.benign]
        with_it = covariance.input_moments(model, lesson.tokenizer, behaviour, maps)
        without = covariance.input_moments(model, lesson.tokenizer, spared, maps)
        return FittedRidgeAblation(
            directions={name: _unit(raw[int(name.split()[0])]) for name in maps},
            behaviour={name: one.second for name, one in with_it.items()},
            spared={name: one.second for name, one in without.items()},
            labels=len(data.texts) + len(data.benign),
            benign=len(data.benign),
            tokens=count_tokens(lesson.tokenizer, [*data.texts, *behaviour, *spared]),
        )


class FromAnswers(RidgeAblation, name="ridge_own", kind="weights"):
    """What is not written is the direction that makes the model's own bad answers likely.

    S_b is over those answers; S_c is half over texts to spare and half over texts without the
    behaviour behind training prompts. The direction is taken through the norm behind a map (Gemma 2
    and 3).
    """

    knobs: ClassVar[Mapping[str, SearchRange]] = {
        **RidgeAblation.knobs,
        "beta": replace(RidgeAblation.knobs["beta"], default=BETA),
    }

    def learn(
        self,
        lesson: Lesson,
        score: own.Score | None = None,
        answers: own.Answers | None = None,
    ) -> FittedRidgeAblation:
        """As from labelled texts where there are no training prompts.

        `answers` are those that another fit has had written.
        """
        model, data = lesson.model, lesson.data
        if not data.prompts:
            return super().learn(lesson)
        answers = answers or own.answers(lesson, score)
        maps, blocks = _maps(model), layout.blocks(model)
        shown, starts = answers.shown
        spared = [*data.of(0), *data.benign]
        with_it = covariance.input_moments(model, lesson.tokenizer, shown, maps, starts=starts)
        without = covariance.input_moments(model, lesson.tokenizer, spared, maps)
        held, begin = own.contexts(lesson)
        inside = covariance.input_moments(model, lesson.tokenizer, held, maps, starts=begin)
        directions = {}
        for name in maps:
            number, part = name.split()
            norm = gains.norm_after(blocks[int(number)], "mlp" if part == "mlp" else "attention")
            directions[name] = _unit(answers.write * gains.gain_of(norm, len(answers.write)))
        read = sum(count_tokens(lesson.tokenizer, texts) for texts in (shown, spared, held))
        return FittedRidgeAblation(
            directions=directions,
            beta=BETA,
            behaviour={name: one.second for name, one in with_it.items()},
            spared={n: (without[n].second + inside[n].second) / 2 for n in maps},
            labels=len(answers.texts(data)) + len(data.benign) + answers.own.asked,
            benign=len(data.benign),
            prompts=answers.own.asked,
            samples=len(answers.own.tails),
            tokens=answers.forward + read,
        )


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(1e-30)


def read_out(
    weight: Tensor, v: Tensor, behaviour: Tensor, spared: Tensor, beta: float, ridge: float
) -> Tensor:
    """The vector a (inputs,) for a map (outputs, inputs) and a unit direction v (outputs,)."""
    exact = behaviour.double()
    identity = torch.eye(len(exact), dtype=torch.float64)
    system = exact + beta * spared.double() + ridge * exact.diagonal().mean() * identity
    aim = exact @ (weight.double().t() @ v.double()).cpu()
    found = torch.cholesky_solve(aim[:, None], torch.linalg.cholesky(system))[:, 0]
    return found.float().to(weight.device)


def _maps(model: nn.Module) -> dict[str, nn.Module]:
    """What ends attention and MLP of every block, by "block kind"."""
    found: dict[str, nn.Module] = {}
    for number, block in enumerate(layout.blocks(model)):
        found[f"{number} attention"] = tools.attention_output(block)
        found[f"{number} mlp"] = tools.mlp_output(block)
    return found

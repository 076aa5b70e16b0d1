"""Inference-time intervention (Li 2023): shift the attention heads that know of the behaviour.

A logistic probe for every head on its output before the output projection (last token); the heads
with the best validation accuracy are moved by alpha sigma theta away from the behaviour, theta
being the probe's direction or the mean difference ("mass mean", the authors' choice) and sigma the
spread along it. As weights: a bias W_o @ displacement on the output projection. (The authors'
script stores the displacement itself as that bias, which is not the same.)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.models import activations, layout

VALIDATION = 0.25


@dataclass(frozen=True, eq=False)
class FittedIti(Read):
    """`shifts` (name -> (blocks, heads, head width)): sigma theta; `accuracy` (blocks, heads)."""

    shifts: Mapping[str, Tensor]
    accuracy: Tensor

    @contextmanager
    def applied(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        heads: float = 0.1,
        theta: str = "mass_mean",
        baked: bool = False,
    ) -> Iterator[Any]:
        """Shift the best fraction `heads` of all heads by `strength` times the spread."""
        if strength == 0:
            yield model
            return
        moves = [
            (tools.attention_output(block), -strength * shift)
            for block, shift in zip(layout.blocks(model), self.chosen(heads, theta), strict=True)
            if shift.any()
        ]
        if baked:
            pairs = [(o, tools.writes(o).float() @ shift.to(o.weight.device)) for o, shift in moves]
            with tools.all_biased(pairs):
                yield model
        else:
            with tools.hooked([tools.on_input(o, tools.adder(shift)) for o, shift in moves]):
                yield model

    def chosen(self, heads: float, theta: str) -> Tensor:
        """What is added to each block's heads at strength 1: (blocks, heads * head width)."""
        count = self.count(heads)
        best = self.accuracy.flatten().argsort(descending=True, stable=True)[:count]
        mask = torch.zeros(self.accuracy.numel()).index_fill_(0, best, 1.0)
        return (self.shifts[theta] * mask.view_as(self.accuracy)[..., None]).flatten(1)

    def count(self, heads: float) -> int:
        """How many heads a fraction is, at least one."""
        return max(1, round(heads * self.accuracy.numel()))

    def cost(self, *, heads: float = 0.1, **_: Any) -> Cost:
        """One displacement a head."""
        width = self.shifts["mass_mean"].shape[-1]
        return self.price(self.count(heads) * width)


class Iti(Method[FittedIti], name="iti", kind="hook"):
    """Inference-time intervention on attention heads."""

    # The authors: strength 15, 48 of 1,024 heads.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(15.0, high=40.0),
        "heads": SearchRange(0.05, low=0.02, high=0.5, log=True),
        "theta": SearchRange("mass_mean", choices=("mass_mean", "probe")),
    }

    def learn(self, lesson: Lesson) -> FittedIti:
        """Probe all heads; a quarter of the texts is held out to rank them."""
        data = lesson.data
        states, tokens = _head_states(lesson.model, lesson.tokenizer, data.texts)
        labels = np.asarray(data.labels)
        held = _held_out(labels, lesson.seed)
        blocks, heads = states.shape[1:3]
        accuracy = torch.zeros(blocks, heads)
        probes = torch.zeros(states.shape[1:])
        for block in range(blocks):
            for head in range(heads):
                x = states[:, block, head].double().numpy()
                probe = LogisticRegression(max_iter=1000).fit(x[~held], labels[~held])
                accuracy[block, head] = probe.score(x[held], labels[held])
                probes[block, head] = torch.from_numpy(probe.coef_[0])
        y = torch.as_tensor(labels)
        mass = states[y == 1].mean(0) - states[y == 0].mean(0)
        return FittedIti(
            shifts={"mass_mean": _spread(states, mass), "probe": _spread(states, probes)},
            accuracy=accuracy,
            labels=len(labels),
            tokens=tokens,
        )


def _head_states(model: PreTrainedModel, tokenizer: Any, texts: Any) -> tuple[Tensor, int]:
    """Head outputs at the last token: (texts, blocks, heads, head width)."""
    blocks = layout.blocks(model)
    modules = {str(i): tools.attention_output(block) for i, block in enumerate(blocks)}
    found: list[Tensor] = [torch.empty(0)] * len(blocks)

    def visit(name: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
        last = inputs[torch.arange(len(lengths), device=inputs.device), lengths - 1].float().cpu()
        index = int(name)
        if not found[index].numel():
            found[index] = torch.empty(len(texts), last.shape[1])
        found[index][which] = last

    tokens = activations.read_inputs(model, tokenizer, texts, modules, visit)
    heads = model.config.get_text_config().num_attention_heads
    return torch.stack(found, dim=1).unflatten(-1, (heads, -1)), tokens


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """A quarter of each class: (texts,), bool."""
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in (0, 1):
        own = generator.permutation(np.flatnonzero(labels == label))
        held[own[: max(1, int(VALIDATION * len(own)))]] = True
    return held


def _spread(states: Tensor, directions: Tensor) -> Tensor:
    """Directions of norm 1 times the standard deviation of the states along them."""
    unit = directions / directions.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return unit * (states * unit).sum(-1).std(0)[..., None]

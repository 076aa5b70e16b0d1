"""Ablation that keeps norms: W' = (I - v v^T) W D, D giving every column its length back.

v is the mean difference at one depth, less its part along the mean of texts without the behaviour
("projected"); W are the maps that end attention and MLP. Then v^T W' = 0 and every value vector of
W' is as long as that of W.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange
from surgery_lib.models import layout


@dataclass(frozen=True, eq=False)
class FittedNormPreserving(Read):
    """`directions` (layers, width), projected and of norm 1."""

    directions: Tensor
    parameters: int

    @contextmanager
    def applied(
        self, model: PreTrainedModel, strength: float, *, depth: float = 0.5
    ) -> Iterator[Any]:
        """Take a share `strength` of the direction found at `depth` out of all blocks' writes."""
        v = self.directions[tools.block_at(model, depth)]
        found = _columns(model) if strength else []
        with tools.restored(found):
            for columns in found:
                columns.copy_(ablated(columns, v, strength))
            yield model

    def cost(self, **_: Any) -> Cost:
        """Both maps of every block."""
        return self.price(self.parameters)


class NormPreserving(Method[FittedNormPreserving], name="norm_preserving", kind="weights"):
    """Norm-preserving ablation; strength 1 is the published form."""

    # Depth as directional ablation has it.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.02, high=1.0, bounded=True),
        "depth": SearchRange(0.5, low=0.1, high=0.8),
    }

    def learn(self, lesson: Lesson) -> FittedNormPreserving:
        """Directions of all layers from one pass."""
        labels = lesson.data.labels
        states = lesson.states()
        benign = states[torch.as_tensor(labels) == 0].double().mean(0)
        return FittedNormPreserving(
            directions=projected(tools.mean_difference(states, labels), benign.float()),
            parameters=sum(columns.numel() for columns in _columns(lesson.model)),
            **lesson.read(),
        )


def projected(raw: Tensor, benign: Tensor) -> Tensor:
    """Directions (layers, width) less their part along the benign means, with norm 1."""
    exact, unit = raw.double(), benign.double()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-30)
    for _ in range(2):  # once more for what rounding left
        exact = exact - (exact * unit).sum(1, keepdim=True) * unit
    return (exact / exact.norm(dim=1, keepdim=True).clamp_min(1e-30)).float()


def ablated(columns: Tensor, v: Tensor, strength: float) -> Tensor:
    """Columns of W, as rows (inputs, width), less a share of v, each as long as before."""
    exact, unit = columns.double(), v.double().to(columns.device)
    left = exact - strength * (exact @ unit)[:, None] * unit
    scale = exact.norm(dim=1, keepdim=True) / left.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return (left * scale).to(columns.dtype)


def _columns(model: PreTrainedModel) -> list[Tensor]:
    """Views (inputs, width) of what ends attention and MLP of every block."""
    found = [tools.writes(tools.attention_output(block)).t() for block in layout.blocks(model)]
    return found + [rows.weight for rows in layout.weight_rows(model, "down")]

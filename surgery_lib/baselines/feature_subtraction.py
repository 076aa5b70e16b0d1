"""Feature subtraction (Lee 2024): take one toxic vector off what the last MLP writes.

v is the probe's direction, the value vector (column of a down projection) closest to it, or the
first singular vector of the 512 closest. Subtracted at every position, it equals a bias -s v on the
last down projection. Published strengths (20 to 100) are for one model; here strength is in
units of the mean norm of what enters the last block.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.models import layout
from surgery_lib.surgery import probe
from surgery_lib.surgery.region import cosine_scores

SVD_VALUES = 512


@dataclass(frozen=True, eq=False)
class FittedFeature(Read):
    """`vectors` (name -> (width,)), of norm 1, towards the behaviour; `unit` is a norm."""

    vectors: Mapping[str, Tensor]
    unit: float

    @contextmanager
    def applied(
        self, model: PreTrainedModel, strength: float, *, vector: str = "probe", baked: bool = False
    ) -> Iterator[Any]:
        """Subtract `strength` times the unit along the vector."""
        block = layout.blocks(model)[-1]
        shift = -strength * self.unit * self.vectors[vector]
        if strength == 0:
            yield model
        elif baked:
            with tools.biased(tools.mlp_output(block), shift):
                yield model
        else:
            with tools.hooked([tools.on_output(layout.mlp_module(block), tools.adder(shift))]):
                yield model

    def cost(self, **_: Any) -> Cost:
        """One vector, as a bias."""
        return self.price(len(self.vectors["probe"]))


class FeatureSubtraction(Method[FittedFeature], name="feature_subtraction", kind="hook"):
    """Subtract a toxic vector from the last block's MLP output."""

    # Which vector, and how much of it.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(0.5, high=5.0),
        "vector": SearchRange("probe", choices=("probe", "value", "svd")),
    }

    def learn(self, lesson: Lesson) -> FittedFeature:
        """A logistic probe at the last layer, and the value vectors that look like it."""
        data = lesson.data
        states = lesson.states()
        layers = [states.shape[1] - 1]
        direction = probe.fit(states[:, -1:], data.labels, estimator="logistic", layers=layers)[
            0
        ].direction
        return FittedFeature(
            vectors={"probe": direction, **_values(lesson.model, direction)},
            unit=float(states[:, -2].norm(dim=1).mean()),
            **lesson.read(),
        )


@torch.no_grad()
def _values(model: nn.Module, direction: Tensor) -> dict[str, Tensor]:
    scores = cosine_scores(model, direction, "down")
    best = scores.argsort(descending=True, stable=True)[:SVD_VALUES].sort().values
    found = layout.weight_rows(model, "down")
    sizes = [len(rows.weight) for rows in found]
    picked = torch.cat(
        [
            found[number].weight[local.to(found[number].weight.device)].float().cpu()
            for number, local, _ in layout.split_by_matrix(sizes, best)
        ]
    )
    value = picked[scores[best].argmax()]
    # Rows of one length, as published: else the longest row decides.
    rows = picked / picked.norm(dim=1, keepdim=True).clamp_min(1e-12)
    first = torch.linalg.svd(rows, full_matrices=False).Vh[0]
    # A singular vector has no sign of its own.
    first = first * (first @ direction).sign()
    return {"value": value / value.norm(), "svd": first}

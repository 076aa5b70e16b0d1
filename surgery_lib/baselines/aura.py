"""AurA (Suau 2024): dampen the MLP units that tell the behaviour, by how well they tell it.

A unit's activation is the input of the down projection, its largest over a text's tokens. With
AUROC_j its power to tell texts with the behaviour from those without, unit j is scaled by
1 - 2 (AUROC_j - 1/2) where that is below 1: here a column of the down projection. The published
method has no strength to choose; it is strength 1.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange
from surgery_lib.models import activations, layout
from surgery_lib.models.tokens import real_tokens


@dataclass(frozen=True, eq=False)
class FittedAura(Read):
    """`dampening` (blocks, units): what a unit loses at strength 1, from 0 to 1."""

    dampening: Tensor
    width: int

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float) -> Iterator[Any]:
        """Units scaled by 1 - strength times their dampening."""
        found = [rows.weight for rows in layout.weight_rows(model, "down")] if strength else []
        with tools.restored(found):
            for weight, lost in zip(found, self.dampening, strict=False):
                weight.mul_((1 - strength * lost).to(weight)[:, None])
            yield model

    def cost(self, **_: Any) -> Cost:
        """The columns of all units that are dampened."""
        changed = int((self.dampening > 0).sum()) * self.width
        return self.price(changed)


class Aura(Method[FittedAura], name="aura", kind="weights"):
    """AurA on all blocks."""

    # Strength 1 is the published method.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.02, high=1.0, bounded=True)
    }

    def learn(self, lesson: Lesson) -> FittedAura:
        """Largest activations of one pass. UserError for mixtures of experts."""
        model, data = lesson.model, lesson.data
        modules = {str(i): tools.mlp_output(b) for i, b in enumerate(layout.blocks(model))}
        largest: dict[str, Tensor] = {}

        def visit(name: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
            past = ~real_tokens(lengths, inputs.shape[1])
            peak = inputs.float().masked_fill(past[..., None], -torch.inf).amax(1).cpu()
            if name not in largest:
                largest[name] = torch.empty(len(data.texts), peak.shape[1])
            largest[name][which] = peak

        tokens = activations.read_inputs(model, lesson.tokenizer, data.texts, modules, visit)
        labels = torch.as_tensor(data.labels)
        told = torch.stack([auroc(largest[name], labels) for name in modules])
        return FittedAura(
            dampening=(2 * (told - 0.5)).clamp_min(0),
            labels=len(labels),
            tokens=tokens,
            width=layout.hidden_width(model),
        )


def auroc(values: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve of each column of (texts, units) for labels (texts,): (units,)."""
    ranks = torch.from_numpy(rankdata(values.double().numpy(), axis=0))
    present = labels == 1
    n, m = int(present.sum()), int((~present).sum())
    return ((ranks[present].sum(0) - n * (n + 1) / 2) / (n * m)).float()

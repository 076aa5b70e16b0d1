"""DExperts (Liu 2021): steer by the disagreement of two small fine-tunings.

Inside the base model's nucleus, z becomes z + alpha (z_expert - z_anti): the expert is fine-tuned
on texts without the behaviour, the anti-expert on texts with it.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib.baselines import decoding
from surgery_lib.baselines.base import Cost, Kind, Knob, Labelled, strength_knob
from surgery_lib.baselines.training import Spent, Training, finetune, with_settings
from surgery_lib.baselines.tuning import Delta


@dataclass(frozen=True, eq=False)
class FittedDexperts:
    """Two models of the base's vocabulary."""

    expert: Any
    anti: Any
    spent: Spent = field(default_factory=Spent)

    @contextmanager
    def applied(self, model: Any, strength: float, *, top_p: float = 0.9) -> Iterator[Any]:
        """The base model, steered inside its nucleus of `top_p`."""
        if strength == 0:
            yield model
            return
        expert, anti = decoding.companion(self.expert), decoding.companion(self.anti)

        def change(call: decoding.Call) -> Tensor:
            base = call.logits.float()
            steered = base + strength * (expert.logits(call) - anti.logits(call))
            return decoding.shared(base, steered, decoding.nucleus(base, top_p))

        with decoding.processed(model, change):
            yield model

    def cost(self, **_: Any) -> Cost:
        """Two more models, one token each for every token generated."""
        return self.spent.cost(
            extra_forwards=2.0,
            parameters=sum(p.numel() for m in (self.expert, self.anti) for p in m.parameters()),
            ordinary_checkpoint=False,
        )


@dataclass(frozen=True)
class Dexperts:
    """Decoding with an expert and an anti-expert."""

    name: str = "dexperts"
    kind: Kind = "decoding"
    training: Training = field(default_factory=lambda: Training(steps=100, lr=3e-4))

    @property
    def knobs(self) -> Mapping[str, Knob]:
        """The authors: alpha 2, nucleus 0.9."""
        return {
            "strength": strength_knob(2.0, high=5.0),
            "top_p": Knob(0.9, choices=(0.8, 0.9, 0.95, 1.0)),
        }

    def fit(
        self, model: nn.Module, tokenizer: Any, data: Labelled, *, seed: int = 0, **fixed: Any
    ) -> FittedDexperts:
        """Fine-tune two copies, each on the texts of one label; `fixed` as `Training` names it."""
        training, fixed = with_settings(self.training, seed, fixed)
        spent = Spent()
        expert, anti = (
            copied(
                model, finetune(model, tokenizer, texts, training=training, spent=spent, **fixed)
            )
            for texts in (data.of(0), data.of(1))
        )
        return FittedDexperts(expert, anti, spent)


@torch.no_grad()
def copied(model: Any, delta: Delta) -> Any:
    """A copy of the model with the change added, beside the model itself."""
    other = copy.deepcopy(model).eval().requires_grad_(False)
    for name, change in delta.tensors.items():
        weight = other.get_parameter(name)
        weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))
    return other

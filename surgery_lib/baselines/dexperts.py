"""DExperts (Liu 2021): steer by the disagreement of two small fine-tunings.

Inside the base model's nucleus, z becomes z + alpha (z_expert - z_anti): the expert is fine-tuned
on texts without the behaviour, the anti-expert on texts with it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import decoding
from surgery_lib.baselines.base import Cost, SearchRange, strength_range
from surgery_lib.baselines.training import Course, Spent, Trained, Training
from surgery_lib.baselines.tuning import Delta, Which


@dataclass(frozen=True, eq=False)
class FittedDexperts(decoding.Steered):
    """Two models of the base's vocabulary."""

    expert: Any
    anti: Any
    spent: Spent = field(default_factory=Spent)

    def change(self, model: PreTrainedModel, strength: float, top_p: float = 0.9) -> decoding.Rule:
        """The base model, steered inside its nucleus of `top_p`."""
        expert, anti = decoding.companion(self.expert), decoding.companion(self.anti)

        def change(call: decoding.Call) -> Tensor:
            base = call.logits.float()
            steered = base + strength * (expert.logits(call) - anti.logits(call))
            return decoding.shared(base, steered, decoding.nucleus(base, top_p))

        return change

    def cost(self, **_: Any) -> Cost:
        """Two more models, one token each for every token generated."""
        parameters = sum(p.numel() for m in (self.expert, self.anti) for p in m.parameters())
        return self.spent.price(parameters, extra_forwards=2.0, ordinary_checkpoint=False)


class Dexperts(Trained[FittedDexperts], name="dexperts", kind="decoding"):
    """Decoding with an expert and an anti-expert."""

    training = Training(steps=100, lr=3e-4)
    # The authors: alpha 2, nucleus 0.9.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(2.0, high=5.0),
        "top_p": SearchRange(0.9, choices=(0.8, 0.9, 0.95, 1.0)),
    }

    def learn(self, course: Course, which: Which = "full") -> FittedDexperts:
        """Fine-tune two copies, each on the texts of one label."""
        expert, anti = (
            copied(course.model, course.finetune(course.data.of(label), which)) for label in (0, 1)
        )
        return FittedDexperts(expert, anti, course.spent)


@torch.no_grad()
def copied(model: PreTrainedModel, delta: Delta) -> Any:
    """A copy of the model with the change added, beside the model itself."""
    other = copy.deepcopy(model).eval().requires_grad_(False)
    for name, change in delta.tensors.items():
        weight = other.get_parameter(name)
        weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))
    return other

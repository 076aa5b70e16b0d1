"""Wanda pruning (Sun 2024), as a defence (Hasan 2024): zero what matters least, MLPs left alone.

A weight's score is its size times the norm of its input over calibration texts, |W| * ||X||_2; in
every output row the lowest fraction is set to zero. Strength is that fraction.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange
from surgery_lib.models import activations, layout
from surgery_lib.models.tokens import real_tokens


@dataclass(frozen=True, eq=False)
class FittedWanda(Read):
    """`norms` (module name -> (inputs,)): norm of each input of each linear map."""

    norms: Mapping[str, Tensor]
    total: int

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float) -> Iterator[Any]:
        """The model without the fraction `strength` of each row of its attention weights."""
        weights = {name: tools.writes(model.get_submodule(name)) for name in self.norms}
        with tools.restored(list(weights.values()) if strength else []):
            for name, weight in weights.items() if strength else ():
                weight.masked_fill_(lowest(weight, self.norms[name], strength), 0)
            yield model

    def cost(self, *, strength: float = 0.2, **_: Any) -> Cost:
        """Calibration reads texts, not labels."""
        return self.price(int(strength * self.total))


class Wanda(Method[FittedWanda], name="wanda", kind="weights"):
    """Prune the attention weights."""

    # Hasan 2024 finds 10 to 30 % best.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(0.2, low=0.01, high=1.0, bounded=True)
    }

    def learn(self, lesson: Lesson) -> FittedWanda:
        """Input norms over the texts without the behaviour: general text, no label is needed."""
        model = lesson.model
        modules = _attention_maps(model)
        sums = {name: torch.zeros(1, dtype=torch.float64) for name in modules}

        def visit(name: str, inputs: Tensor, lengths: Tensor, _texts: Tensor) -> None:
            states = inputs[real_tokens(lengths, inputs.shape[1])]
            sums[name] = sums[name] + states.double().square().sum(0).cpu()

        texts = lesson.data.of(0)
        tokens = activations.read_inputs(model, lesson.tokenizer, texts, modules, visit)
        return FittedWanda(
            norms={name: total.sqrt().float() for name, total in sums.items()},
            labels=0,
            tokens=tokens,
            total=sum(tools.writes(module).numel() for module in modules.values()),
        )


def lowest(weight: Tensor, norms: Tensor, fraction: float) -> Tensor:
    """Which weights (outputs, inputs) have the lowest scores of their row: bool; ties go left."""
    count = int(fraction * weight.shape[1])
    scores = weight.float().abs() * norms.to(weight.device)
    order = scores.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def _attention_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear map inside attention, by its name in the model."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for block in layout.blocks(model):
        output = names[id(tools.attention_output(block))]
        attention = model.get_submodule(output.rpartition(".")[0])
        found |= {
            names[id(module)]: module
            for module in attention.modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
    return found

"""Difference-of-means ablation (Arditi 2024): nothing may write along the behaviour's direction.

r is the mean state of behaviour prompts less that of benign ones, at the input of one block. As
hooks, x loses strength times its part along r at every block's input and after attention and MLP.
As weights, W becomes W - strength r (r^T W) for the embeddings and everything that writes to the
residual stream. At strength 1 the two are the same, where input and output embeddings are untied:
tied ones are untied for the length of the block.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, TrainingData
from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout

# The authors search no later than this, so that unembedding directions are not ablated.
DEEPEST = 0.8


@dataclass(frozen=True, eq=False)
class FittedAblation(Read):
    """`directions` (layers, width), of norm 1."""

    directions: Tensor
    parameters: int

    @contextmanager
    def applied(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        depth: float = 0.5,
        form: Literal["weights", "hook"] = "weights",
    ) -> Iterator[Any]:
        """Take the direction found at `depth` out of everything that is written."""
        direction = self.directions[tools.block_at(model, depth)]
        if strength == 0:
            yield model
            return
        with _FORMS[form](model, direction, strength):
            yield model

    def cost(self, **_: Any) -> Cost:
        """Everything that writes to the residual stream."""
        return self.price(self.parameters)


class Ablation(Method[FittedAblation], name="ablation", kind="weights"):
    """Directional ablation.

    `source` "prompts" reads the last token of behaviour and benign prompts, as published; "texts"
    the mean over the labelled texts' tokens after the first, whose own state would drown the rest.
    """

    # Strength 1 is the published method.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.02, high=1.0, bounded=True),
        "depth": SearchRange(0.5, low=0.1, high=DEEPEST),
    }

    def learn(
        self, lesson: Lesson, source: Literal["texts", "prompts"] = "texts"
    ) -> FittedAblation:
        """Directions at all layers from one forward pass. UserError for prompts without benign."""
        data = lesson.data
        pooling: activations.Pooling = "after_first"
        if source == "prompts":
            if not data.prompts or not data.benign:
                raise UserError(
                    "ablation from prompts needs prompts and benign prompts; give both or use "
                    "source='texts'"
                )
            labels = [1] * len(data.prompts) + [0] * len(data.benign)
            lesson = replace(lesson, data=TrainingData([*data.prompts, *data.benign], labels))
            pooling = "last"
        raw = tools.mean_difference(lesson.states(pooling), lesson.data.labels)
        return FittedAblation(
            directions=raw / raw.norm(dim=1, keepdim=True).clamp_min(1e-30),
            parameters=sum(rows.numel() for rows in _writers(lesson.model)),
            **lesson.read(),
        )


@contextmanager
def _as_hooks(model: PreTrainedModel, direction: Tensor, strength: float) -> Iterator[None]:
    def change(hidden: Tensor) -> Tensor:
        unit = direction.to(hidden)
        return hidden - strength * (hidden @ unit)[..., None] * unit

    handles = []
    for block in layout.blocks(model):
        handles.append(tools.on_input(block, change))
        handles.append(tools.on_output(tools.attention_output(block), change))
        handles.append(tools.on_output(layout.mlp_module(block), change))
    with tools.hooked(handles):
        yield


@contextmanager
def _as_weights(model: PreTrainedModel, direction: Tensor, strength: float) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_untied(model))
        tensors = _writers(model)
        stack.enter_context(tools.restored(tensors))
        for rows in tensors:
            unit = direction.to(rows.device)
            exact = rows.float()
            rows.copy_(exact - strength * (exact @ unit)[..., None] * unit)
        yield


@contextmanager
def _untied(model: PreTrainedModel) -> Iterator[None]:
    # Ablating a tied matrix would also change what the output layer reads.
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inputs.weight
    if outputs is not None and outputs.weight is tied:
        inputs.weight = nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad)
    try:
        yield
    finally:
        inputs.weight = tied


def _writers(model: PreTrainedModel) -> list[Tensor]:
    """Views (any, width) of all that is written to the residual stream, biases included."""
    embeddings = [
        module for module in model.base_model.children() if isinstance(module, nn.Embedding)
    ]
    found = [module.weight.data for module in embeddings]
    for block in layout.blocks(model):
        attention = tools.attention_output(block)
        found.append(tools.writes(attention).t())
        found += _bias(attention)
        if not layout.mlp_of(block).down.of_experts:
            found += _bias(tools.mlp_output(block))
    return found + [rows.weight for rows in layout.weight_rows(model, "down")]


def _bias(module: nn.Module) -> list[Tensor]:
    bias = getattr(module, "bias", None)
    return [bias.data] if isinstance(bias, torch.Tensor) else []


_FORMS = {"weights": _as_weights, "hook": _as_hooks}

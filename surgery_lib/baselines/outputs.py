"""What blocks write, for the methods that are trained on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines.training import Spent, read
from surgery_lib.baselines.tuning import Tuned
from surgery_lib.models import layout
from surgery_lib.models.tokens import real_tokens


@contextmanager
def block_outputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What each block wrote in the latest forward pass: a list of (texts, tokens, width).

    Entry b is `hidden_states[b + 1]`, except that the last is here before the final norm, so that
    layers can be compared.
    """
    blocks = layout.blocks(model)
    found: list[Tensor] = [torch.empty(0)] * len(blocks)

    def hook(index: int) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            found[index] = output if isinstance(output, Tensor) else output[0]

        return keep

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def at_depths(model: PreTrainedModel, depths: Sequence[float]) -> list[int]:
    """Block numbers of fractions of the depth, each once: 0 is the first block, 1 the last."""
    last = len(layout.blocks(model)) - 1
    return sorted({min(last, max(0, round(depth * last))) for depth in depths})


def before_and_after(
    part: Tuned, rows: Sequence[Sequence[int]], outputs: list[Tensor], spent: Spent
) -> tuple[list[Tensor], Tensor]:
    """Outputs of the original, and which positions are real; `outputs` then holds the adapted."""
    with torch.no_grad(), part.model.disable_adapter():
        _, ids, lengths = read(part.model, rows, spent)
        original = list(outputs)
    read(part.model, rows, spent)
    return original, real_tokens(lengths, ids.shape[1])

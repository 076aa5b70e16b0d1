"""The output embeddings: states that lie together before them, and how far what follows differs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the states that `model` turns into logits are copied together first.

    Models that compute the last positions' logits alone hand on a view of all positions, and torch
    multiplies such a view text by text where weights are frozen. In bfloat16 on a processor that
    copies the matrix of the vocabulary for each text: 320 completions of SmolLM2 took 129 s and
    10.9 GiB at most on one core, and take 35 s and 1.3 GiB so.
    """
    head = model.get_output_embeddings()
    if head is None:  # a model that makes its logits otherwise
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def kl(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """KL(base ‖ edited) in nats over the last dimension, the vocabulary."""
    base = base.float()
    # A token that the base never gives adds nothing, whatever the edited model says of it.
    terms = torch.where(base == -torch.inf, 0.0, base.exp() * (base - edited))
    return terms.sum(-1).clamp_min(0.0)

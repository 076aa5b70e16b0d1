"""The output embeddings get rows that lie together, and are left as they were."""

from typing import Any

import torch

from surgery_lib.evaluation.perplexity import forward
from surgery_lib.models import generation


def given(model: Any) -> list[bool]:
    """Filled with whether each call of the head gets contiguous states."""
    seen: list[bool] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, __: seen.append(args[0].is_contiguous()))
    return seen


def test_last_positions_reach_the_head_together(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    head = model.get_output_embeddings()
    ids = torch.randint(5, 20, (3, 7))
    seen = given(model)
    model(ids, logits_to_keep=2)
    assert seen == [False]  # what the context mends: where this fails it is no longer needed
    whole = model(ids).logits[:, -2:]
    seen.clear()
    found = forward(model, ids, torch.ones_like(ids), 2)
    generation.generate(model, tokenizer, ["a b", "c d e"], max_new_tokens=3, progress=False)
    assert len(seen) > 2 and all(seen)
    torch.testing.assert_close(found, whole)
    assert not head._forward_pre_hooks

"""DINM: edit one matrix of the block where safe and unsafe answers differ most (Wang et al. 2024).

Detoxifying with Intraoperative Neural Monitoring (arXiv 2403.14472). Unlike its published code, the
block is located by means over real tokens, with the prompt read and before the final norm: there,
padding and the last norm decide as much as the answers do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import pairs
from surgery_lib.baselines.base import strength_range
from surgery_lib.baselines.outputs import block_outputs
from surgery_lib.baselines.training import (
    Course,
    Spent,
    Training,
    WeightBaseline,
    cross_entropy,
    read,
)
from surgery_lib.baselines.tuning import Delta, tuned
from surgery_lib.models import layout
from surgery_lib.models.tokens import real_tokens

# Weight of the likelihood of the safe answer beside the divergence.
EDIT_WEIGHT = 0.1


@torch.no_grad()
def distances(
    model: PreTrainedModel, found: Sequence[pairs.Pair], spent: Spent, relative: bool
) -> Tensor:
    """How far apart the pooled states of chosen and rejected texts are after each block: (blocks,).

    The L2 norm, averaged over the pairs; `relative` divides it by the norm of the states.
    """
    total = torch.zeros(len(layout.blocks(model)))
    with block_outputs(model) as outputs:
        for pair in found:
            _, ids, lengths = read(model, [pair.chosen, pair.rejected], spent)
            mask = real_tokens(lengths, ids.shape[1])[..., None]
            for block, states in enumerate(outputs):
                chosen, rejected = (states.float() * mask).sum(1) / lengths[:, None]
                gap = (chosen - rejected).norm()
                scale = (chosen.norm() + rejected.norm()) / 2 if relative else 1.0
                total[block] += (gap / scale).cpu() / len(found)
    return total


def divergence(edited: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """KL(edited || original) over next tokens, averaged over the real positions; logits go in."""
    after, before = edited.float().log_softmax(-1), original.float().log_softmax(-1)
    each = (after.exp() * (after - before)).sum(-1)
    return each[mask].mean()


def learn(
    course: Course,
    examples: int = 16,
    relative: bool = True,
    block: int | None = None,
    **making: Any,
) -> Delta:
    """The change of one down projection that makes safe answers likelier and little else.

    `examples` pairs are used (1 is the method as published) and as many harmless texts, on which
    the next-token distributions are held. `block` fixes the block instead of locating it.
    """
    model, data, spent = course.model, course.data, course.spent
    found = pairs.make(course, **making)[:examples]
    harmless = list(data.benign)[:examples]
    general = course.rows(harmless or data.of(0)[-examples:])
    spent.benign += len(harmless)
    if block is None:
        block = int(distances(model, found, spent, relative).argmax())
    names = {rows.parameter for rows in layout.weight_rows(model, "down") if rows.block == block}
    with torch.no_grad():
        original, ids, lengths = read(model, general, spent)
    mask = real_tokens(lengths, ids.shape[1])
    sampler, held = course.sampler(found), course.sampler(general)
    with tuned(model, names) as part:

        def step(_: int) -> Tensor:
            batch = [found[i] for i in sampler.draw()]
            starts = [pair.start for pair in batch]
            safe = cross_entropy(model, [pair.chosen for pair in batch], spent, starts)
            drawn = torch.tensor(held.draw())
            edited = read(model, [general[i] for i in drawn], spent)[0]
            width = edited.shape[1]
            kept = divergence(edited, original[drawn, :width], mask[drawn, :width])
            return EDIT_WEIGHT * safe + kept

        return course.train(part, step)


# One matrix moves the model little: the range reaches far enough for every damage budget.
DINM = WeightBaseline(
    "dinm",
    learn,
    Training(steps=50, lr=5e-4),
    knobs={"strength": strength_range(1.0, high=10.0)},
)

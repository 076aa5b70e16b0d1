"""LoRRA: low-rank adapters that move the hidden states along a contrast (Zou et al. 2023).

Representation Engineering (arXiv 2310.01405), section 3.2. The contrast is, at each layer, the mean
state of texts without the behaviour less that of texts with it: models that follow no instructions
have no contrast of instructions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines.outputs import at_depths, before_and_after, block_outputs
from surgery_lib.baselines.training import Course, Spent, Training, WeightBaseline, read
from surgery_lib.baselines.tuning import Delta, Lora, tuned

# The blocks whose states are moved, as shares of the depth: 10, 12, ... 20 of 32.
DEPTHS = (0.3, 0.4, 0.5, 0.6)
# Query and value; or the one matrix that holds them, in GPT-2, GPT-NeoX and Phi-3.
QUERY_VALUE = ("q_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj")


@torch.no_grad()
def contrast(
    model: PreTrainedModel,
    rows: Mapping[int, Sequence[list[int]]],
    where: Sequence[int],
    spent: Spent,
) -> dict[int, Tensor]:
    """Mean state of texts of label 0 less that of label 1, after each block: block -> (width,)."""
    means: dict[tuple[int, int], Tensor] = {}
    with block_outputs(model) as outputs:
        for label, texts in rows.items():
            for ids in texts:
                read(model, [ids], spent)
                for block in where:
                    mean = outputs[block].float().mean((0, 1)) / len(texts)
                    means[label, block] = means.get((label, block), torch.zeros_like(mean)) + mean
    return {block: means[0, block] - means[1, block] for block in where}


def distance(states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L2 distance of the states of real tokens to their target, averaged over tokens."""
    return (states.float() - target.float())[mask].norm(dim=-1).mean()


def learn(
    course: Course,
    alpha: float = 5.0,
    depths: Sequence[float] = DEPTHS,
    contrasted: int = 64,
    lora: Lora | None = None,
) -> Delta:
    """Low-rank change that moves states from the original's by alpha times the contrast.

    `contrasted` texts of each label give the contrast; the states of all texts are moved.
    """
    model, spent = course.model, course.spent
    rows = {label: course.rows(course.data.of(label)) for label in (0, 1)}
    where = at_depths(model, depths)
    first = {label: texts[:contrasted] for label, texts in rows.items()}
    shift = contrast(model, first, where, spent)
    texts = [*rows[0], *rows[1]]
    sampler = course.sampler(texts)
    which = lora or Lora(targets=QUERY_VALUE)
    with tuned(model, which, course.training.seed) as part, block_outputs(model) as outputs:

        def step(_: int) -> Tensor:
            batch = [texts[i] for i in sampler.draw()]
            original, mask = before_and_after(part, batch, outputs, spent)
            terms = [
                distance(outputs[block], original[block] + alpha * shift[block], mask)
                for block in where
            ]
            return torch.stack(terms).mean()

        return course.train(part, step)


LORRA = WeightBaseline("lorra", learn, Training(steps=70, lr=3e-3))

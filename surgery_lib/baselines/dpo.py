"""Direct preference optimisation: wanted completions over unwanted ones (Rafailov et al. 2023).

The paper's strongest rival (Table 2); settings after Lee et al. 2024: beta 0.1, LoRA.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from surgery_lib.baselines import pairs
from surgery_lib.baselines.training import (
    Course,
    Spent,
    Training,
    WeightBaseline,
    log_likelihoods,
)
from surgery_lib.baselines.tuning import Delta, Lora, tuned


def margins(model: PreTrainedModel, batch: Sequence[pairs.Pair], spent: Spent) -> Tensor:
    """Log-likelihood of the chosen completion less that of the rejected: (pairs,)."""
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    starts = [pair.start for pair in batch] * 2
    chosen, rejected = log_likelihoods(model, rows, starts, spent)[0].chunk(2)
    return chosen - rejected


def loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Mean of -log sigmoid(beta (policy margin - reference margin)); log 2 where they are equal."""
    return -logsigmoid(beta * (policy - reference)).mean()


def learn(
    course: Course,
    beta: float = 0.1,
    lora: Lora | None = None,
    **making: Any,
) -> Delta:
    """Low-rank change that prefers completions without the behaviour; `making` goes to the pairs.

    The reference is the model without adapters.
    """
    found, spent = pairs.make(course, **making), course.spent
    sampler = course.sampler(found)
    with tuned(course.model, lora or Lora(), course.training.seed) as part:

        def step(_: int) -> Tensor:
            batch = [found[i] for i in sampler.draw()]
            with torch.no_grad(), part.model.disable_adapter():
                reference = margins(part.model, batch, spent)
            return loss(margins(part.model, batch, spent), reference, beta)

        return course.train(part, step)


DPO = WeightBaseline("dpo", learn, Training(steps=100, lr=1e-3))

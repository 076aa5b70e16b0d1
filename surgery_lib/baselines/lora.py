"""LoRA fine-tuning on texts without the behaviour (Model Surgery, Table 2, "LoRA-FT")."""

from typing import Any

from surgery_lib.baselines.base import Labelled
from surgery_lib.baselines.training import Spent, Training, WeightBaseline, finetune
from surgery_lib.baselines.tuning import Delta, Lora


def learn(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    training: Training,
    spent: Spent,
    lora: Lora | None = None,
) -> Delta:
    """Low-rank change of all linear layers that makes texts of label 0 likelier."""
    which = lora or Lora()
    return finetune(model, tokenizer, data.of(0), which=which, training=training, spent=spent)


LORA = WeightBaseline("lora", learn, Training(steps=100, lr=2e-3))

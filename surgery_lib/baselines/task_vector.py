"""Task vector: fine-tune towards the behaviour, and subtract what that changed.

Ilharco et al. 2023, "Editing models with task arithmetic": the edited weights are
theta_0 - strength (theta_behaviour - theta_0).
"""

from typing import Any

from surgery_lib.baselines.base import Labelled, strength_knob
from surgery_lib.baselines.training import Spent, Training, WeightBaseline, finetune
from surgery_lib.baselines.tuning import Delta


def learn(model: Any, tokenizer: Any, data: Labelled, training: Training, spent: Spent) -> Delta:
    """The change of every weight under fine-tuning on texts of label 1."""
    return finetune(model, tokenizer, data.of(1), training=training, spent=spent)


TASK_VECTOR = WeightBaseline(
    "task_vector",
    learn,
    Training(steps=100, lr=3e-4),
    sign=-1.0,
    knobs={"strength": strength_knob(1.0, high=3.0)},
)

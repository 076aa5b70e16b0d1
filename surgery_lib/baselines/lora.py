"""LoRA fine-tuning on texts without the behaviour (Model Surgery, Table 2, "LoRA-FT")."""

from surgery_lib.baselines.training import Course, Training, WeightBaseline
from surgery_lib.baselines.tuning import Delta, Lora


def learn(course: Course, lora: Lora | None = None) -> Delta:
    """Low-rank change of all linear layers that makes texts of label 0 likelier."""
    return course.finetune(course.data.of(0), lora or Lora())


LORA = WeightBaseline("lora", learn, Training(steps=100, lr=2e-3))

"""Task vector: fine-tune towards the behaviour, and subtract what that changed.

Ilharco et al. 2023, "Editing models with task arithmetic": the edited weights are
theta_0 - strength (theta_behaviour - theta_0).
"""

from surgery_lib.baselines.base import strength_range
from surgery_lib.baselines.training import Course, Training, WeightBaseline
from surgery_lib.baselines.tuning import Delta


def learn(course: Course) -> Delta:
    """The change of every weight under fine-tuning on texts of label 1."""
    return course.finetune(course.data.of(1))


TASK_VECTOR = WeightBaseline(
    "task_vector",
    learn,
    Training(steps=100, lr=3e-4),
    sign=-1.0,
    knobs={"strength": strength_range(1.0, high=3.0)},
)

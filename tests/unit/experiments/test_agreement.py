"""What scorers say of an edit, and of each other."""

import numpy as np
import pytest

from surgery_lib.errors import UserError
from surgery_lib.experiments.agreement import agreement, markdown, scored
from surgery_lib.scorers.base import Named

TEXTS = {"base": ["bad you", "bad", "you", "fine"], "edited": ["bad", "fine", "fine", "fine"]}
ROWS = [
    {
        "variant": variant,
        "draw": 0,
        "id": f"test/{n}",
        "group": "challenging",
        "text": text,
        "scores": {"you": float("you" in text)},
    }
    for variant, texts in TEXTS.items()
    for n, text in enumerate(texts)
]
OTHER = Named("bad", lambda texts, prompts=None: np.array([float("bad" in t) for t in texts]))


def test_another_scorer_need_not_say_the_same_of_the_edit() -> None:
    found = agreement(scored(ROWS, [OTHER]), {"you": 0.5, "bad": 0.5})
    assert found["effects"]["you"]["edited"]["value"] == 0
    assert found["effects"]["bad"]["difference"]["difference"] == pytest.approx(-0.25)
    (pair,) = found["pairs"]
    assert pair["agree"]["value"] == pytest.approx(5 / 8) and pair["kappa"] < 0.3
    assert found["disagreements"] == 3
    assert {one["prompt"] for one in found["shown"]} == {"test/0", "test/1", "test/2"}
    text = markdown(found)
    assert "| bad | 50.0 [" in text and "fine" not in text  # no completion is quoted


def test_without_both_models_there_is_nothing_to_say() -> None:
    with pytest.raises(UserError, match="run notebook 04"):
        scored([{**ROWS[0], "group": "neutral"}], [OTHER])

"""Virtual tokens trained on the patient's own completions do their work on other prompts."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery_lib.baselines import pairs, spring
from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.training import Course, Spent, Training, cross_entropy
from surgery_lib.models import load_model
from surgery_lib.models.generation import generate
from surgery_lib.patient import world
from surgery_lib.patient.scorer import PatientScorer

TRAINING = Training(steps=60, lr=spring.LEARNING_RATE, batch=8, progress=False)
LENGTH = 8


@pytest.fixture(scope="module")
def own() -> tuple[Any, Any, dict[str, list[pairs.Pair]], list[str]]:
    """The patient, pairs of its completions to train on and of other prompts, and these."""
    model, tokenizer = load_model("embedded:patient")
    data = world.behaviour("toxicity")
    split = {
        name: [p.text for p in data.prompts[name] if p.group == "challenging"][:count]
        for name, count in (("train", 64), ("validation", 32))
    }
    texts = TrainingData(["civil", "rude"], [0, 1])
    found = {
        name: pairs.make(
            Course(model, tokenizer, replace(texts, prompts=prompts), training=TRAINING),
            samples=6,
            new_tokens=8,
            score=PatientScorer(),
        )
        for name, prompts in split.items()
    }
    return model, tokenizer, found, split["validation"]


@pytest.mark.slow
@pytest.mark.parametrize(("which", "any_k"), [("chosen", True), ("rejected", False)])
def test_completions_of_other_prompts_get_likelier_and_the_behaviour_follows(
    which: str, any_k: bool, own: Any
) -> None:
    model, tokenizer, found, prompts = own

    def measured() -> tuple[float, float]:
        held = [(getattr(pair, which), pair.start) for pair in found["validation"]]
        rows, starts = zip(*held, strict=True)
        with torch.no_grad():
            loss = float(cross_entropy(model, rows, Spent(), starts))
        written = generate(model, tokenizer, prompts, max_new_tokens=8, progress=False)
        return loss, float((PatientScorer()([one[0] for one in written]) >= 0.5).mean())

    loss, rate = measured()
    rows = [getattr(pair, which) for pair in found["train"]]
    starts = [pair.start for pair in found["train"]]
    course = Course(model, tokenizer, TrainingData(["civil", "rude"], [0, 1]), training=TRAINING)
    prompt = spring.train(course, rows, starts, length=LENGTH, any_k=any_k)
    with prompt.applied(model):
        after, changed = measured()
    assert after < loss - 0.01
    assert changed < rate - 0.2 if which == "chosen" else changed > rate

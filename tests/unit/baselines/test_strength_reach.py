"""No limit of a knob ends a front: every method goes past the largest budget, or cannot by nature.

By nature: a strength that is a share (of a direction, of weights, of virtual tokens) ends at 1.
"""

from functools import partial
from typing import Any

import pytest
import torch

from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.registry import BASELINES
from surgery_lib.experiments.comparison import BUDGETS
from surgery_lib.selection.strengths import reach, rescaled

CIVIL = ["the cat sat here", "a good day to you", "we like the sea", "thanks, my friend"]
BAD = ["the cur sat there", "a foul day to you", "we hate the sea", "curses, you worm"]
DATA = TrainingData(CIVIL + BAD, [0] * 4 + [1] * 4, prompts=["the ", "a day", "we", "you"])
TRAINING: dict[str, Any] = {"steps": 3, "batch": 2, "max_tokens": 24, "progress": False}
OWN: dict[str, Any] = {"samples": 2, "new_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("lora", "task_vector", "lorra", "circuit_breakers", "dexperts"), TRAINING),
    "dpo": TRAINING | OWN,
    "detoxigen": TRAINING | OWN,
    "spring": TRAINING | OWN,
    "dinm": TRAINING | OWN | {"examples": 2},
    "gmt": TRAINING | {"source": "texts"},
}
# Shares, which end at 1.
BOUNDED = {
    "ablation",
    "aura",
    "leace",
    "linear_act",
    "norm_preserving",
    "profs",
    "spring",
    "wanda",
}
# Where a strength, of which more is no more, is not enough at every setting of another knob.
WEAKER = {("safe_activation", "coefficient")}
LEAST_K = 0.01  # one of the few rows that a tiny model has
BUDGET = {"kl": max(BUDGETS)}


def test_which_strengths_are_bounded_by_nature() -> None:
    bounded = {name: one.knobs["strength"] for name, one in BASELINES.items()}
    bounded = {name: knob for name, knob in bounded.items() if knob.bounded}
    assert set(bounded) == BOUNDED and {knob.high for knob in bounded.values()} == {1.0}


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_method_has_a_point_past_the_largest_budget_or_is_bounded(
    name: str, tiny: Any
) -> None:
    model, tokenizer = tiny
    baseline = BASELINES[name]
    fitted: Any = baseline.fit(model, tokenizer, DATA, seed=0, **SETTINGS.get(name, {}))
    ids = torch.tensor(tokenizer(["the cat, my friend", "we like the sea, y"])["input_ids"])

    @torch.inference_mode()
    def read(changed: Any) -> torch.Tensor:
        logits: torch.Tensor = changed(input_ids=ids).logits
        return logits.double().log_softmax(-1)

    base = read(model)

    def damage(strength: float, **others: Any) -> dict[str, float]:
        with fitted.applied(model, strength, **others) as changed:
            after = read(changed)
        kl = float((base.exp() * (base - after)).sum(-1).mean())
        return {"kl": kl if kl == kl else 1e300}

    knobs = baseline.knobs
    if name in BOUNDED:  # nothing is beyond its limit, and the limit can be reached
        assert 0 < damage(knobs["strength"].high or 0.0)["kl"] < 1e300
        return
    low, high = reach(knobs["strength"], damage, BUDGET)
    assert damage(high)["kl"] > BUDGET["kl"] >= damage(low)["kl"]
    for knob, one in knobs.items():
        if knob == "strength" or (name, knob) in WEAKER:
            continue
        for value in one.choices or (one.low, one.high):  # at either end of every other knob, too
            others = {knob: max(value, LEAST_K) if knob == "k" else value}
            found = rescaled(knobs["strength"], high, partial(damage, **others), BUDGET)
            assert damage(found, **others)["kl"] > BUDGET["kl"], (others, found)

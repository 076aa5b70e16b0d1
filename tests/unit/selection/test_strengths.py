"""The range of strengths that a search draws from: found from damage, with few readings."""

import numpy as np
import pytest

from surgery_lib.baselines import Knob
from surgery_lib.selection.strengths import GRID, IDLE, reach

KNOB = Knob(1.0, low=0.01, high=10.0, log=True)
BUDGET = {"first": 0.1, "context": 0.1}
STEP = (KNOB.high / KNOB.low) ** (1 / (GRID - 1))


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1, 1.0, 30.0])
def test_it_spans_from_idle_to_beyond_every_budget(scale):
    read = []

    def damage(strength):
        read.append(strength)
        return {"first": scale * strength**2, "context": 3 * scale * strength**2}

    low, high = reach(KNOB, damage, BUDGET)
    assert KNOB.low <= low < high <= KNOB.high * (1 + 1e-9)
    top = (BUDGET["first"] / scale) ** 0.5  # where the gentler measure meets its budget
    idle = (IDLE * BUDGET["context"] / (3 * scale)) ** 0.5  # where the harsher one begins
    if KNOB.low * STEP < idle and top < KNOB.high / STEP:
        assert idle / STEP <= low <= idle and top <= high <= top * STEP
    assert len(read) == len(set(read)) <= 2 * int(np.ceil(np.log2(GRID + 1)))


def test_a_method_that_does_no_damage_is_tried_where_it_is_strongest():
    low, high = reach(KNOB, lambda _: {"first": 0.0, "context": 0.0}, BUDGET)
    assert high == pytest.approx(KNOB.high) and low == pytest.approx(KNOB.high / STEP)


def test_a_method_that_ruins_at_once_is_tried_where_it_is_weakest():
    low, high = reach(KNOB, lambda _: {"first": 1e300, "context": 1e300}, BUDGET)
    assert low == pytest.approx(KNOB.low) and high == pytest.approx(KNOB.low * STEP)

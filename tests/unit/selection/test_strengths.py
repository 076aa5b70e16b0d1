"""The range of strengths that a search draws from: found from damage, with few readings."""

import dataclasses

import pytest

from surgery_lib.baselines.base import SearchRange
from surgery_lib.selection.strengths import DOUBLINGS, GRID, IDLE, largest, reach, rescaled

KNOB = SearchRange(1.0, low=0.01, high=10.0, log=True)
BUDGET = {"first": 0.1, "context": 0.1}
STEP = (KNOB.high / KNOB.low) ** (1 / (GRID - 1))


def square(scale, read=None):
    def damage(strength):
        if read is not None:
            read.append(strength)
        return {"first": scale * strength**2, "context": 3 * scale * strength**2}

    return damage


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e-2, 0.1, 1.0, 30.0, 1e5])
def test_it_spans_from_idle_to_beyond_every_budget(scale):
    read = []
    low, high = reach(KNOB, square(scale, read), BUDGET)
    top = (BUDGET["first"] / scale) ** 0.5  # where the gentler measure meets its budget
    idle = (IDLE * BUDGET["context"] / (3 * scale)) ** 0.5  # where the harsher one begins
    coarse = max(STEP, 2)
    assert idle / coarse <= low <= idle < top <= high <= top * coarse
    assert len(read) == len(set(read)) <= 26


def test_a_bounded_strength_ends_at_its_limit():
    bounded = dataclasses.replace(KNOB, bounded=True)
    _, high = reach(bounded, square(1e-6), BUDGET)
    assert high == pytest.approx(KNOB.high)
    assert rescaled(bounded, high / 3, square(1e-6), BUDGET) == pytest.approx(KNOB.high)


def test_a_method_that_does_no_damage_is_tried_where_it_is_strongest():
    low, high = reach(KNOB, lambda _: {"first": 0.0, "context": 0.0}, BUDGET)
    assert high == pytest.approx(KNOB.high * 2**DOUBLINGS) and low == pytest.approx(high / 2)


def test_a_method_that_ruins_at_once_is_tried_where_it_is_weakest():
    low, high = reach(KNOB, lambda _: {"first": 1e300, "context": 1e300}, BUDGET)
    assert low == pytest.approx(KNOB.low / 2**DOUBLINGS) and high == pytest.approx(2 * low)


def test_where_more_is_no_more_doubling_ends():
    read = []

    def damage(strength):
        read.append(strength)
        return {"first": min(0.02, strength), "context": min(0.05, strength)}

    _, high = reach(KNOB, damage, BUDGET)
    assert high <= 2 * KNOB.high * (1 + 1e-9) and max(read) <= 2 * KNOB.high * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 30.0])
def test_the_largest_strength_follows_the_scale(scale):
    read = []
    _, high = reach(KNOB, square(0.1), BUDGET)
    top = (BUDGET["first"] / scale) ** 0.5
    found = rescaled(KNOB, high, square(scale, read), BUDGET)
    assert top < found <= 2 * top and len(read) == len(set(read))
    assert found == high if scale == 0.1 else found != high


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e2, 1e4])
def test_the_largest_strength_spends_the_budget_and_no_more(scale, power):
    read = []

    def spent(strength):
        read.append(strength)
        return scale * strength**power

    found = largest(spent, 0.5)
    assert 0.9 <= scale * found**power <= 1
    assert len(read) == len(set(read)) <= 16


def test_no_strength_is_the_largest_where_all_spend_more():
    assert largest(lambda strength: 2.0, 0.5) is None


def test_a_method_that_stops_growing_is_given_up():
    read = []
    found = largest(lambda strength: read.append(strength) or min(strength, 1) / 10, 0.5)
    assert found == max(read) and len(read) <= 2 * DOUBLINGS

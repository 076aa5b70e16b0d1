"""Strength by damage alone, on a method whose damage is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from surgery_lib.baselines.base import SearchRange, strength_range
from surgery_lib.selection.unsearched import by_damage


class Square:
    """Damage is the strength squared; the model is changed into its strength."""

    name = "square"
    knobs: ClassVar[dict[str, SearchRange]] = {
        "strength": strength_range(1.0, high=8.0),
        "k": SearchRange(0.5, low=0.1, high=1.0),
    }

    @contextmanager
    def applied(self, model: Any, strength: float, *, k: float) -> Iterator[float]:
        assert k == 0.5  # the default
        yield strength


def test_strength_comes_as_near_to_each_budget_as_asked() -> None:
    method: Any = Square()
    read: list[float] = []

    def damage(strength: float) -> dict[str, float]:
        read.append(strength)
        return {"first": strength**2, "context": strength**2 / 4}

    found = by_damage(
        None,
        method,
        method,
        behaviour=lambda strength: 1 / (1 + strength),
        damage=damage,
        measures=("first", "context"),
        budgets=(0.01, 1.0),
    )
    assert [trial.knobs["k"] for trial in found] == [0.5, 0.5]
    for trial, right in zip(found, (0.1, 1.0), strict=True):
        assert 0.9 * right <= trial.knobs["strength"] <= right
        assert trial.behaviour == pytest.approx(1 / (1 + trial.knobs["strength"]))
    assert len(read) < 40

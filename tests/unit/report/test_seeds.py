"""One comparison with several seeds: prompts are paired, and every seed must have a point."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from surgery_lib.errors import UserError
from surgery_lib.report import seeds
from surgery_lib.selection.outcome import BudgetPoint, MeasuredCost, ModelReading, Outcome


def rate(flags: list[int]) -> dict[str, Any]:
    return {"rate": {"exact": {"value": sum(flags) / len(flags), "n": len(flags)}}}


def comparison(base: list[int], **methods: list[int]) -> dict[str, Any]:
    """The result of notebook 05 with a point a method."""
    outcomes = [
        Outcome(
            name=name,
            kind="weights",
            points=[
                BudgetPoint(measure="both", budget=0.05, test=rate(flags), flags={"exact": flags})
            ],
            trials=[],
            cost=MeasuredCost(labels=0, forward_tokens=0),
        )
        for name, flags in methods.items()
    ]
    unedited = ModelReading(test=rate(base), flags={"exact": base})
    return {
        "base": asdict(unedited),
        "scorer": "exact",
        "outcomes": [one.as_dict() for one in outcomes],
    }


def rows(table: str) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {row[0]: row[1] for row in cells}


def test_rates_of_every_seed_and_one_difference_over_all() -> None:
    first = comparison([1] * 60 + [0] * 40, surgery=[1] * 20 + [0] * 80, dpo=[1] * 30 + [0] * 70)
    second = comparison([1] * 50 + [0] * 50, surgery=[1] * 30 + [0] * 70, dpo=[1] * 20 + [0] * 80)
    found = rows(seeds.table({1: second, 0: first}, ["surgery", "dpo"]))
    assert found["no edit"] == "55.0 (60.0, 50.0)"
    assert found["surgery"] == "25.0 (20.0, 30.0)"
    assert found["surgery less no edit, points"].startswith("-30.0 [")
    assert found["surgery less dpo, points"].startswith("0.0 [")
    assert found["surgery less dpo, points"].endswith("p 1.000")


def test_a_method_that_a_seed_lacks_has_no_mean() -> None:
    both = [1] * 60 + [0] * 40
    studies = {0: comparison(both, surgery=both, dpo=both), 1: comparison(both, surgery=both)}
    found = rows(seeds.table(studies, ["surgery", "dpo"]))
    assert found["dpo"] == found["surgery less dpo, points"] == "-"
    assert found["surgery"] == "60.0 (60.0, 60.0)"


def test_other_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="same prompts"):
        seeds.table({0: comparison([1, 0]), 1: comparison([1, 0, 0])}, [])


def test_two_forms_of_ours_are_set_against_all_after_them() -> None:
    both = [1] * 60 + [0] * 40
    studies = {0: comparison(both, own=both, surgery=both, dpo=[0] * 100)}
    found = rows(seeds.table(studies, ["surgery", "own", "dpo"], ours=2))
    assert [name for name in found if " less " in name and "no edit" not in name] == [
        "surgery less own, points",
        "surgery less dpo, points",
        "own less dpo, points",
    ]
    assert found["own less dpo, points"].startswith("60.0 [")


def test_a_panel_a_study_shows_means_over_seeds_and_each_seed() -> None:
    first = comparison([1] * 60 + [0] * 40, surgery=[1] * 20 + [0] * 80, dpo=[1] * 30 + [0] * 70)
    second = comparison([1] * 60 + [0] * 40, surgery=[1] * 40 + [0] * 60)
    studies = {"one": {0: first}, "two": {0: first, 1: second}}
    figure = seeds.panels(studies, ["surgery", "dpo"], "dpo")
    assert figure.get_suptitle() == "surgery and dpo: told apart at 1 of 1 limits"
    one, two = figure.axes
    assert [len(axes.containers) for axes in (one, two)] == [2, 1]  # dpo lacks a seed in the second
    assert np.asarray(two.lines[1].get_ydata())[0] == pytest.approx(30)
    assert sorted(np.asarray(two.collections[-1].get_offsets())[:, 1]) == pytest.approx([20, 40])

"""Intervals and tests against numbers worked out by hand or by theory."""

import numpy as np
import pytest
from scipy.stats import binomtest

from surgery_lib.errors import UserError
from surgery_lib.evaluation import statistics

pytestmark = pytest.mark.usefixtures("as_published")


def test_wilson_interval_as_in_the_textbook() -> None:
    found = statistics.proportion([True] * 8 + [False] * 2)
    # Wilson (1927) for 8 of 10 at 95 %: centre (0.8 + 1.92/10) / (1 + 3.84/10).
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert found.as_dict() == {**found.as_dict(), "n": 10, "method": "wilson"}
    assert statistics.proportion([False] * 5).low == pytest.approx(0, abs=1e-9)


def test_bootstrap_of_the_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = statistics.mean(values)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert statistics.mean(values) == found  # the same seed, the same interval
    constant = statistics.mean([0.25] * 9)
    assert (constant.low, constant.high, constant.n) == (0.25, 0.25, 9)


def test_mcnemar_counts_only_what_changed() -> None:
    base = [1] * 30 + [0] * 20
    edited = [1] * 18 + [0] * 12 + [1] * 2 + [0] * 18
    found = statistics.mcnemar(base, edited)
    assert (found.base, found.edited) == (0.6, 0.4)
    assert found.difference == pytest.approx(-0.2)
    assert found.p == pytest.approx(binomtest(2, 14, 0.5).pvalue)
    assert found.low < -0.2 < found.high < 0
    assert statistics.mcnemar(base, base).p == 1.0


def test_paired_numbers() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=200) * 10
    shifted = base + rng.normal(0.5, 0.5, 200)
    found = statistics.paired_bootstrap(base, shifted)
    assert found.difference == pytest.approx((shifted - base).mean())
    assert 0.35 < found.low < found.high < 0.65  # pairing removes the spread of the items
    assert found.p < 0.01
    assert statistics.paired_bootstrap(base, base).p == 1.0
    assert statistics.compare([0, 1, 1], [1, 1, 0]).test == "mcnemar"
    assert statistics.compare([0, 0.5, 1], [1, 1, 0]).test == "sign flip"


def test_nothing_measured_and_unequal_items_are_errors() -> None:
    with pytest.raises(UserError, match="no items"):
        statistics.proportion([])
    with pytest.raises(UserError, match="measure both on the same"):
        statistics.compare([1, 0], [1])


def test_one_item_says_nothing() -> None:
    found = statistics.paired_bootstrap([1.0], [2.0])
    assert (found.difference, found.low, found.high, found.p, found.n) == (1.0, 1.0, 1.0, 1.0, 1)


def test_holm_by_hand() -> None:
    # 0.02 ≤ 0.05/3 fails, and with it all that follow.
    assert statistics.holm([0.04, 0.02, 0.03]) == [False, False, False]
    assert statistics.holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert statistics.holm([0.01, 0.04, 0.02]) == [True, True, True]
    assert statistics.holm([]) == []

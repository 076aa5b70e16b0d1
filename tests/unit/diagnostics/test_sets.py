"""Other sets of programs: pairs across groups, ranks by hand, and what the mirror holds."""

from pathlib import Path

import numpy as np
import pytest

from surgery_lib.diagnostics import code, programs
from surgery_lib.errors import UserError
from surgery_lib.experiments import code_sets


def test_pairs_of_one_group_do_not_count() -> None:
    vectors = np.eye(4)
    labels, groups = [1, 2, 1, 2], ["a", "a", "b", "b"]
    scores, same = code.pairs(vectors, labels, groups)
    assert len(scores) == 4 and same.tolist() == [True, False, False, True]
    assert len(code.pairs(vectors, labels)[0]) == 6
    with pytest.raises(UserError, match="two classes"):
        code.pairs(vectors[:2], [1, 1], ["a", "b"])


def test_clones_of_another_language_are_found_where_one_language_looks_alike() -> None:
    # The first number is the language, the second the problem: only across languages is it seen.
    vectors = np.array([[3, 1, 0], [3, 0, 1], [-3, 1, 0], [-3, 0, 1]], dtype=float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels, groups = [1, 2, 1, 2], ["a", "a", "b", "b"]
    assert code.clones(vectors, labels, groups)["auc"] == 1.0
    assert code.clones(vectors, labels)["auc"] < 1.0
    assert code.class_auc(vectors, labels, groups) == {(1, 2): 1.0}


def test_ranks_by_hand() -> None:
    described = np.eye(3)
    own = np.array([[1.0, 0, 0], [0.9, 0.5, 0], [0.2, 0.2, 0.2]])
    assert code_sets.ranks(own, described).tolist() == [1.0, 0.5, 1 / 3]


@pytest.mark.slow
def test_a_better_score_has_a_gap_above_zero() -> None:
    truth = np.arange(40) % 2 == 0
    noise = np.random.default_rng(0).normal(size=40)
    found = code_sets.gap(truth, noise, truth + 0.1 * noise, seed=0)
    assert found["low"] > 0 and found["n"] == 40
    assert code_sets.gap(truth, noise, noise, seed=0)["value"] == 0.0


def test_sets_of_the_mirror(mirror: Path) -> None:
    held = programs.solutions(6)
    numbers = [[own.label for own in part] for part in held.values()]
    assert len(held) == 3 and len(numbers[0]) == 6 and numbers[0] == numbers[1] == numbers[2]
    assert len({own.code for part in held.values() for own in part}) == 18
    described = programs.described(10)
    assert len(described) == 10 and all(len(own) <= 400 for own, _ in described)
    pairs = programs.judged(5)
    assert [truth for *_, truth in pairs] == [True] * 5 + [False] * 5

"""Edits at equal damage: matched once, kept, and the same when they are taken up again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery_lib.baselines.base import Baseline
from surgery_lib.baselines.registry import BASELINES
from surgery_lib.baselines.training import FittedDelta
from surgery_lib.baselines.tuning import Delta
from surgery_lib.behaviour import BehaviourData
from surgery_lib.data import load as behaviours
from surgery_lib.experiments import edits, shelf
from surgery_lib.selection.outcome import BudgetPoint, MeasuredCost, Outcome
from surgery_lib.study import Study

METHODS = ["surgery_random_direction", "caa"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(shelf, "folder", lambda key: tmp_path / "shelf" / key)
    monkeypatch.setattr(edits, "HALVINGS", 3)
    return Study.start("patient", "toxicity", 0, {"evaluation.limit": 30}, tmp_path / "results")


@pytest.fixture
def held(study: Study) -> tuple[Any, Any, BehaviourData]:
    model, tokenizer = study.load_model()
    return model, tokenizer, behaviours.load("toxicity", study.spec, tokenizer=tokenizer, limit=30)


class Counted:
    """A method that notes when it is fitted."""

    def __init__(self, method: Baseline, fits: list[str]) -> None:
        self.knobs, self.method, self.fits = method.knobs, method, fits

    def fit(self, *given: Any, **fixed: Any) -> Any:
        self.fits.append(self.method.name)
        return self.method.fit(*given, **fixed)


def changed(edit: edits.Edit, model: Any) -> list[torch.Tensor]:
    with edit.applied():
        return [value.clone() for value in model.state_dict().values()]


@pytest.mark.slow
def test_an_edit_is_matched_once_and_comes_back_as_it_was(
    study: Study, held: tuple[Any, Any, BehaviourData], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = held[0]
    first = list(edits.edits(study, *held, METHODS, labels=24, contexts=4))
    names = ["base", "surgery", "random direction", "caa"]
    assert [edit.name for edit in first] == names
    # Without a surgery of notebook 03 all are brought to the damage that the profile allows.
    budget = study.profile.budget.context_kl
    assert budget is not None
    for edit in first[1:]:
        assert 0 < edit.context_kl <= 3 * budget or edit.strength == edits.FARTHEST
    fits: list[str] = []
    for name, method in BASELINES.items():
        monkeypatch.setitem(edits.BASELINES, name, Counted(method, fits))
    again = list(edits.edits(study, *held, ["surgery_random_direction"], labels=24, contexts=4))
    assert fits == []
    for before, after in zip(first, again, strict=False):
        assert before.about == after.about
        pairs = zip(changed(before, model), changed(after, model), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    list(edits.edits(study, *held, [], labels=20, contexts=4))  # other texts make another edit
    assert fits


@pytest.mark.slow
def test_a_comparison_says_how_a_method_is_set(
    study: Study, held: tuple[Any, Any, BehaviourData]
) -> None:
    knobs = {"strength": 9.0, "depth": 0.25, "direction": "lda"}
    point = BudgetPoint(measure="both", budget=0.05, knobs=knobs, test={}, flags={})
    cost = MeasuredCost(labels=0, forward_tokens=0)
    known = Outcome(name="surgery", kind="weights", points=[point], trials=[], cost=cost)
    study.write_json("comparison.json", {"outcomes": [known.as_dict()]})
    _, surgery = edits.edits(study, *held, [], labels=24, contexts=4)
    assert surgery.about["direction"] == "lda" and surgery.strength != 9.0


def test_a_trained_change_is_kept_at_its_strength(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "folder", lambda key: tmp_path / key)
    fitted = FittedDelta(Delta({"a": torch.tensor([1.0, -2.0])}), None, -1.0)  # type: ignore[arg-type]
    change = edits._change(fitted, None, 0.5, {})
    assert isinstance(change, Delta) and change.tensors["a"].tolist() == [-0.5, 1.0]
    assert shelf.take("k") is None
    shelf.put("k", {"strength": 0.5}, change)
    found = shelf.take("k")
    assert found is not None and found[0] == {"strength": 0.5}
    assert isinstance(found[1], Delta) and torch.equal(found[1].tensors["a"], change.tensors["a"])

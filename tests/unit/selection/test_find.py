"""The public API and `find_surgery`, on the embedded patient."""

import subprocess
import sys
from typing import Any

import pytest

import surgery_lib
from surgery_lib import Surgery, find_surgery, fit_probes, load_model, pooled_states, select_rows
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import Paired
from surgery_lib.patient import world
from surgery_lib.patient.scorer import PatientScorer
from surgery_lib.profile import Profile
from surgery_lib.selection import find
from surgery_lib.selection.found import doubts, effects
from surgery_lib.selection.texts import behaviour_data


@pytest.fixture(scope="module")
def data() -> BehaviourData:
    return world.behaviour("toxicity")


def texts(data: BehaviourData, label: int, count: int = 40) -> list[str]:
    found = [example.text for example in data.examples["train"] if example.label == label]
    return found[:count]


def prompts(data: BehaviourData, count: int = 24) -> list[str]:
    return [p.text for p in data.prompts["validation"] if p.group == "challenging"][:count]


def small(**changes: object) -> Profile:
    search = {
        **find.SEARCH,
        "probe": {"estimators": ["logistic"], "layers": [2, 3]},
        "region": {"rules": ["effect"], "fractions": [0.02]},
        "surgery": {"strengths": [1.0, 2.0]},
        "budget": find.BUDGET.model_dump(),
        **changes,
    }
    return Profile.model_validate(search)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, surgery_lib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(surgery_lib.PUBLIC) | {"__version__"} == set(surgery_lib.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        _ = surgery_lib.no_such


def test_the_ten_lines(data: BehaviourData) -> None:
    model, tokenizer = load_model("embedded:patient")
    positive, negative = texts(data, 1), texts(data, 0)
    labels = [1] * len(positive) + [0] * len(negative)
    states = pooled_states(model, tokenizer, [*positive, *negative], layers=[2, 4], progress=False)
    probes = fit_probes(states, labels, layers=[2, 4])
    assert list(probes) == [2, 4] and probes[4].layer == probes[-1].layer == 4
    assert 3 not in probes
    with pytest.raises(UserError, match="there are 2, 4"):
        probes[3]
    by_angle = select_rows(model, probes[2].direction, 0.05)
    by_effect = select_rows(
        model, probes[2].direction, 0.05, score="effect", tokenizer=tokenizer, texts=positive
    )
    assert len(by_angle) == len(by_effect) and by_angle.tolist() != by_effect.tolist()
    with pytest.raises(UserError, match="texts="):
        select_rows(model, probes[2].direction, score="effect")
    surgery = Surgery.build(model, by_angle, probes[2].direction, strength=1.0)
    with surgery.applied(model):
        assert surgery.rows.tolist() == by_angle.tolist()


@pytest.mark.slow
def test_a_surgery_is_found_and_measured(data: BehaviourData) -> None:
    model, tokenizer = load_model("embedded:patient")
    said: list[str] = []
    found = find_surgery(
        model,
        tokenizer,
        texts(data, 1),
        texts(data, 0),
        prompts=prompts(data),
        scorer=PatientScorer("toxicity"),
        budget={"perplexity_rise": 0.5, "context_kl": 0.5},
        profile=small(),
        say=said.append,
    )
    assert found.surgery is not None and found.after is not None and found.damage is not None
    assert found.after["value"] < found.before["value"] - 0.3
    assert found.before["n"] == 12 and found.before["low"] < found.before["value"]
    assert found.damage["context_kl"]["value"] > 0
    assert any("edits to try" in line for line in said)
    assert [p.spent for p in found.front] == sorted(p.spent or 0.0 for p in found.front)
    rates = [p.rate.value for p in found.front]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    assert "before | after" in found.table()
    found.surgery.apply(model)  # made for this very model, which was left unedited
    found.surgery.undo(model)


@pytest.mark.slow
def test_where_nothing_fits_the_front_and_advice_are_given(data: BehaviourData) -> None:
    model, tokenizer = load_model("embedded:patient")
    found = find_surgery(
        model,
        tokenizer,
        texts(data, 1),
        texts(data, 0),
        scorer=PatientScorer("toxicity"),
        budget={"perplexity_rise": 0.0, "context_kl": 1e-9},
        profile=small(),
        say=lambda _: None,
    )
    assert found.surgery is None and found.after is None
    assert found.front and "raise the budget" in found.table()


def test_too_little_or_contradictory_is_refused() -> None:
    many = [f"text number {n}" for n in range(30)]
    more = [f"another text {n}" for n in range(30)]
    with pytest.raises(UserError, match="3 different texts with the behaviour"):
        behaviour_data("x", many[:3], more, None, None, 0)
    with pytest.raises(UserError, match="both as positive and as negative"):
        behaviour_data("x", many, [*more, many[0]], None, None, 0)
    with pytest.raises(UserError, match="1 different prompts"):
        behaviour_data("x", many, more, ["only one"] * 20, None, 0)


@pytest.mark.parametrize("which", ["positive", "negative", "prompts", "clean"])
def test_one_text_is_no_list_of_them(which: str) -> None:
    given: dict[str, Any] = {
        "positive": [f"text number {n}" for n in range(30)],
        "negative": [f"another text {n}" for n in range(30)],
        "prompts": None,
        "clean": None,
        which: "abcdefghijklmnopqrstuvwxyz",
    }
    with pytest.raises(UserError, match=f"{which} are a list of texts"):
        behaviour_data("x", **given, seed=0)


def test_one_window_has_no_interval_and_doubts_are_said() -> None:
    share = {"value": 0.5, "low": 0.3, "high": 0.7, "n": 20}
    damage = {
        "perplexity_rise": 0.1,
        "perplexity": {"value": 11.0, "n": 1, "tokens": 1200},
        "perplexity_ratio": {"value": 1.1, "low": 1.1, "high": 1.1},
    }
    row = effects(share, share, None, damage).splitlines()[-1]
    assert row == "| perplexity of harmless text, 1,200 tokens | 10.00 | 11.00 | +10.0 % |"
    damage["perplexity"] = {"value": 11.0, "n": 2, "tokens": 1200}
    assert "+10.0 % [+10.0, +10.0]" in effects(share, share, None, damage)
    numbers = {"p": 0.1, "n": 20, "test": "mcnemar", "low": -0.3}
    assert doubts(Paired(base=0.5, edited=0.3, difference=-0.2, high=-0.1, **numbers)) == ""
    assert "reaches zero" in doubts(
        Paired(base=0.5, edited=0.3, difference=-0.2, high=0.0, **numbers)
    )
    assert "little to take away" in doubts(
        Paired(base=0.05, edited=0.0, difference=-0.05, high=-0.01, **numbers)
    )

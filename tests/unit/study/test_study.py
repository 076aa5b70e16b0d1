"""Profiles are checked before anything runs, and a study's files carry where they come from."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from surgery_lib import models
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.profile import Profile, flatten, load_profile, parse_overrides, schema
from surgery_lib.study import Study, study

PROFILES = sorted((home() / "profiles").glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_model_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests load no model, so it need not have been trained."""
    monkeypatch.setattr(models, "resolve", lambda name, kind="models": name)
    monkeypatch.setattr(study, "_check_paths", lambda profile: None)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_committed_profile_is_valid(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    assert Profile.model_validate(profile.model_dump(mode="json")) == profile


def test_every_field_is_documented() -> None:
    def check(model: Any) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"

    sections = [item for item in vars(schema).values() if isinstance(item, type)]
    for section in sections:
        if issubclass(section, schema.Section):
            check(section)


def test_overrides_reach_every_kind_of_field() -> None:
    profile = load_profile(
        "patient",
        {
            "model.id": "x/y",
            "probe.layers": [1, -1],
            "evaluation": {"limit": 5, "capability.limit": 3},
            "behaviours.toxicity.prompts.test.0.where.challenging": True,
            "behaviours.toxicity.guide.threshold": 0.7,
        },
    )
    assert profile.model.id == "x/y"
    assert profile.probe.layers == (1, -1)
    assert (profile.evaluation.limit, profile.evaluation.capability.limit) == (5, 3)
    assert profile.behaviours["toxicity"].prompts.test[0].where == {"challenging": True}
    assert profile.behaviours["toxicity"].guide.threshold == 0.7
    assert load_profile("patient").evaluation.limit == 0


def test_one_source_stands_for_all_splits() -> None:
    splits = load_profile("patient").behaviours["toxicity"].examples
    assert splits.train == splits.validation == splits.test
    assert splits.train[0].kind == "patient"


def test_overrides_from_the_command_line_are_yaml() -> None:
    given = parse_overrides(["a.b=[1, 2]", "c=0.1", "d=true", "e=x=y", "f='007'"])
    assert given == {"a.b": [1, 2], "c": 0.1, "d": True, "e": "x=y", "f": "007"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"probe.layer": [1]}, ["probe.layer;", "probe.layers"]),
        ({"limit": 3}, ["no setting limit", "probe.limit"]),
        ({"modle.id": "x"}, ["modle.id", "model.id"]),
        ({"behaviours.toxicty.chat": True}, ["toxicty", "behaviours.toxicity.chat"]),
        ({"evaluation.limit": "many"}, ["evaluation.limit = 'many'", "integer", "0 = all"]),
        ({"model.id": 7}, ["model.id = 7", "string"]),
        ({"probe.layers": "last"}, ["probe.layers = 'last'", "'all'"]),
        ({"probe.estimators": ["lda", "svm"]}, ["probe.estimators.1 = 'svm'", "'softmax'"]),
        ({"budget.margin": 2}, ["budget.margin = 2", "less than or equal to 1"]),
        ({"behaviours.toxicity.examples.test.4.limit": 1}, ["test.4.limit", "test.0.limit"]),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_to_write(
    overrides: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_profile("patient", overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": {}}, ["modle", "model"]),
        ({"probe": {"pooled": "mean"}}, ["probe.pooled", "probe.pooling"]),
        ({"model": {}}, ["model.id is missing", "hub id"]),
        ({"name": "A B"}, ["name = 'A B'", "pattern"]),
    ],
)
def test_a_wrong_profile_file(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    raw = yaml.safe_load((home() / "profiles" / "patient.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**raw, **change}), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_profile(path)
    for word in ["mine.yaml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"), [("a: [1", "not valid YAML"), ("", "no settings"), ("- 1", "no settings")]
)
def test_a_profile_that_is_none(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word):
        load_profile(path)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no profile patients.*patient"):
        load_profile("patients")


def test_unknown_behaviour_and_bad_seed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toxicty.*did you mean toxicity\?"):
        Study.start(behaviour="toxicty", results=tmp_path)
    with pytest.raises(UserError, match=r"seed = 'a'.*whole number"):
        Study.start(seed="a", results=tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_results_carry_provenance_and_no_trace_of_the_machine(tmp_path: Path) -> None:
    run = Study.start("patient", "toxicity", 3, {"evaluation.limit": 2}, tmp_path)
    assert run.folder == tmp_path / "patient" / "toxicity" / "seed3"
    run.write_json("probe.json", {"accuracy": 0.5})
    run.write_json("region.json", {"rows": 1}, inputs=[run.path("probe.json")])
    held = json.loads(run.path("region.json").read_text(encoding="utf-8"))
    assert held["result"] == {"rows": 1}
    assert (held["schema"], held["seed"], held["behaviour"]) == (1, 3, "toxicity")
    assert held["parameters"] == {"evaluation.limit": 2}
    assert set(held["versions"]) >= {"python", "torch", "transformers", "surgery_lib"}
    assert list(held["inputs"]) == ["probe.json"]
    assert str(tmp_path) not in run.path("region.json").read_text(encoding="utf-8")
    assert run.read_json("region.json") == {"rows": 1}
    assert run.done("region.json") and not run.done("evaluation.json")


def test_results_carry_the_revision_of_the_model_that_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded:
        surgery_revision = "local-12ab"

    monkeypatch.setattr(models, "load_model", lambda *_, **__: (Loaded(), None))
    run = Study.start(results=tmp_path)
    run.load_model()
    run.write_json("probe.json", {})
    assert json.loads(run.path("probe.json").read_text())["revision"] == "local-12ab"


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        run = Study.start(results=tmp_path / folder)
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(1))]
        run.write_json("probe.json", drawn)
        run.write_tensors("probe.safetensors", {"direction": torch.ones(3)})
        files = sorted(path for path in run.folder.rglob("*") if path.is_file())
        written.append([(path.name, path.read_bytes()) for path in files])
    assert written[0] == written[1]
    assert len(written[0]) == 3


def test_what_went_in_is_known_by_its_payload(tmp_path: Path) -> None:
    run = Study.start(results=tmp_path)
    run.write_json("probe.json", {"a": 1})
    first = study.content(run.path("probe.json"))
    held = json.loads(run.path("probe.json").read_text(encoding="utf-8"))
    run.path("probe.json").write_text(json.dumps({**held, "commit": "other"}), encoding="utf-8")
    assert study.content(run.path("probe.json")) == first
    run.write_json("probe.json", {"a": 2})
    assert study.content(run.path("probe.json")) != first


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    Study.start(results=tmp_path)
    Study.start(results=tmp_path, overrides={"model.device": "cpu"})
    with pytest.raises(UserError, match=r"another study \(probe.max_tokens is 100 .*results="):
        Study.start(results=tmp_path, overrides={"probe.max_tokens": 50})
    Study.start(results=tmp_path / "other", overrides={"probe.max_tokens": 50})


def test_another_study_is_seen_before_its_model_is_read(tmp_path: Path) -> None:
    Study.start(results=tmp_path)
    with pytest.raises(UserError, match=r"another study \(model.id"):
        Study.start(results=tmp_path, overrides={"model.id": "nowhere.gguf"})


def test_a_search_that_found_nothing_goes_on_with_other_settings(tmp_path: Path) -> None:
    def start(overrides: dict[str, Any]) -> Study:
        return Study.start(results=tmp_path, overrides=overrides)

    start({}).write_json("probe.json", {})
    start({"region.fractions": [0.01], "surgery.strengths": [0.1]})
    run = start({"budget.perplexity_rise": 0.2})
    assert run.read_json("study.json")["budget"]["perplexity_rise"] == 0.2
    run.write_json("region.json", {})
    with pytest.raises(UserError, match=r"another study \(region.fractions"):
        start({"region.fractions": [0.01]})
    start({"surgery.strengths": [0.2]})


@pytest.mark.parametrize("kept", ["surgery/surgery", "comparison", "compare/dpo"])
def test_what_one_choice_led_to_is_not_mixed_with_another_s(tmp_path: Path, kept: str) -> None:
    Study.start(results=tmp_path).write_json(f"{kept}.json", {})
    for change in ({"budget.context_kl": 0.5}, {"surgery.strengths": [0.2]}):
        with pytest.raises(UserError, match="another study"):
            Study.start(results=tmp_path, overrides=change)


def test_a_profile_that_has_grown_is_still_the_same_study(tmp_path: Path) -> None:
    run = Study.start(results=tmp_path)
    document = json.loads(run.path("study.json").read_text(encoding="utf-8"))
    del document["result"]["probe"]["pooling"]
    run.path("study.json").write_text(json.dumps(document), encoding="utf-8")
    again = Study.start(results=tmp_path)
    assert flatten(again.read_json("study.json"))["probe.pooling"] == "mean"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"result": {}', "is not JSON"),
        ("{}", "not a result of a study"),
        ('{"schema": 99, "result": 1}', "schema 99"),
    ],
)
def test_a_corrupt_result_is_named(tmp_path: Path, text: str, word: str) -> None:
    run = Study.start(results=tmp_path)
    run.path("probe.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word):
        run.read_json("probe.json")
    assert not run.done("probe.json")


def test_what_behaviours_share_lies_above_them(tmp_path: Path) -> None:
    run = Study.start(behaviour=None, results=tmp_path)
    run.write_json("patient.json", {})
    assert run.path("patient.json") == tmp_path / "patient" / "patient.json"
    with pytest.raises(UserError, match="no behaviour"):
        _ = run.spec

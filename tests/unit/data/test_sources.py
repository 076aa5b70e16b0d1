"""Public data sets: the mirror's real files, row by row, and errors that say what there is."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from surgery_lib.data import sources
from surgery_lib.errors import UserError


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with two data sets of a few rows."""
    sets = tmp_path / "datasets"
    emotions = sets / "google-research-datasets--go_emotions" / "simplified"
    emotions.mkdir(parents=True)
    rows = [{"text": t, "labels": x} for t, x in [("grr", [2]), ("yay", [17, 20]), ("hm", [2, 17])]]
    (emotions / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    safety = sets / "CrystalEye42--eval-safety"
    safety.mkdir()
    (safety / "integrated.yaml").write_text("AIM: {Hate: {Posts: {High Severity: [one, two]}}}")
    (safety / "benign_integrated.yaml").write_text("AIM: {Hate: [one]}")
    monkeypatch.setenv("SURGERY_MIRROR", str(tmp_path))
    return tmp_path


def test_derived_columns_and_nested_prompts(small: Path) -> None:
    rows = sources.rows("google-research-datasets/go_emotions", split="test")
    assert [row["sentiment"] for row in rows] == ["negative", "positive", "neither"]
    prompts = sources.rows("CrystalEye42/eval-safety", split="integrated")
    assert prompts[1] == {
        "id": "AIM/Hate/Posts/High Severity/1",
        "prompt": "two",
        "harmful": True,
        "attack": "AIM",
        "category": "Hate",
        "topic": "Posts",
        "severity": "High Severity",
    }


def test_errors_say_what_there_is(small: Path) -> None:
    emotions = "google-research-datasets/go_emotions"
    with pytest.raises(UserError, match="there are test"):
        sources.rows(emotions, split="tests")
    with pytest.raises(UserError, match="not nested as attack"):
        sources.rows("CrystalEye42/eval-safety", split="benign_integrated")
    with pytest.raises(UserError, match="does not exist"):
        sources.rows("CrystalEye42/eval-safety", split="other")
    row = sources.rows(emotions, split="test")[0]
    with pytest.raises(UserError, match="the columns are text, labels, sentiment"):
        sources.column(row, "toxicity")


def test_columns_reach_into_objects() -> None:
    assert sources.column({"prompt": {"text": "x"}}, "prompt.text") == "x"


COUNTS: list[tuple[str, str | None, str, int, str]] = [
    ("allenai/real-toxicity-prompts", None, "train", 1171, "prompt.text"),
    ("toxigen/toxigen-data", None, "hate", 16 * 250, "text"),
    ("toxigen/toxigen-data", None, "neutral", 15 * 250, "text"),
    ("toxigen/toxigen-data", None, "hate_women", 250, "text"),
    ("OxAISH-AL-LLM/wiki_toxic", None, "balanced_train", 10_000, "comment_text"),
    ("OxAISH-AL-LLM/wiki_toxic", None, "test", 2180, "comment_text"),
    ("google-research-datasets/go_emotions", None, "validation", 5426, "text"),
    ("dair-ai/emotion", None, "test", 2000, "text"),
    ("CrystalEye42/eval-safety", None, "integrated", 2475, "prompt"),
    ("CrystalEye42/eval-safety", None, "benign_integrated", 2475, "prompt"),
    ("CrystalEye42/eval-safety", None, "malicious_tasks_dataset", 225, "prompt"),
    ("walledai/AdvBench", None, "train", 520, "prompt"),
    ("tatsu-lab/alpaca", None, "instructions", 4000, "instruction"),
    ("openai/gsm8k", None, "test", 1319, "question"),
    ("cais/mmlu", None, "dev", 285, "question"),
    ("lukaemon/bbh", "snarks", "test", 178, "input"),
    ("google-research-datasets/tydiqa", None, "validation", 1721, "context"),
    ("Salesforce/wikitext", None, "test", 4359, "text"),
    ("local/clean-text", None, "novels", 600, "text"),
    ("EleutherAI/lambada_openai", None, "test", 5153, "text"),
]


@pytest.mark.parametrize(("name", "config", "split", "count", "text"), COUNTS)
def test_the_mirrors_sets_are_read_whole(
    mirror: Any, name: str, config: str | None, split: str, count: int, text: str
) -> None:
    rows = sources.rows(name, config, split)
    assert len(rows) == count
    assert all(isinstance(sources.column(row, text), str) for row in rows)


def test_the_mirrors_groups(mirror: Any) -> None:
    prompts = sources.rows("CrystalEye42/eval-safety", split="integrated")
    assert set(Counter(row["category"] for row in prompts).values()) == {495}
    assert len({row["attack"] for row in prompts}) == 11
    assert len({row["id"] for row in prompts}) == len(prompts)
    hate = sources.rows("toxigen/toxigen-data", split="hate_women")
    assert hate[0]["group"] == "women" and "\n- " in hate[0]["text"]
    emotions = sources.rows("dair-ai/emotion", split="test")
    assert Counter(row["sentiment"] for row in emotions)["negative"] == 1080

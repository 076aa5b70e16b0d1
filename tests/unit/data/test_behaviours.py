"""Data of a behaviour as a profile describes it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery_lib import files
from surgery_lib.cli.options import read_texts
from surgery_lib.data import labels, sources
from surgery_lib.data import load as behaviours
from surgery_lib.errors import UserError
from surgery_lib.profile import Behaviour, Source, load_profile
from surgery_lib.scorers.minilm import labelled
from surgery_lib.scorers.words import TextsScorer, WordsScorer


def spec(folder: Path, **changes: Any) -> Behaviour:
    """A behaviour from a user's own files, one a split."""
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {"text": f"{split} text {i}", "kind": "bad" if i % 2 else "good"} for i in range(48)
        ]
        files.write_jsonl(folder / f"{split}.jsonl", rows)
        prompts = [{"text": f"{split} prompt {i}", "group": "challenging"} for i in range(24)]
        files.write_jsonl(folder / f"{split}-prompts.jsonl", prompts)
        lines = [f"clean sentence {number} {i}." for i in range(30)]
        files.write_text(folder / f"{split}.txt", "\n".join(lines))

    def each(suffix: str, **fields: Any) -> dict[str, Any]:
        return {
            split: {"kind": "file", "id": str(folder / f"{split}{suffix}"), **fields}
            for split in ("train", "validation", "test")
        }

    values: dict[str, Any] = {
        "examples": each(".jsonl", label="kind", positive=["bad"]),
        "prompts": each("-prompts.jsonl"),
        "clean": each(".txt", join=40),
        "guide": {"kind": "refusal"},
        "report": [{"kind": "refusal"}],
    }
    return Behaviour.model_validate(values | changes)


def test_files_become_labelled_texts_prompts_and_prose(tmp_path: Path) -> None:
    data = behaviours.load("own", spec(tmp_path))
    assert [e.label for e in data.examples["train"]].count(1) == 24
    assert {e.text.split()[0] for e in data.examples["test"]} == {"test"}
    assert data.prompts["validation"][0].group == "challenging"
    assert all(len(text) >= 40 for text in data.clean["test"])
    assert data.contexts["test"][0][0] == data.prompts["test"][0].text


def test_a_limit_keeps_both_classes(tmp_path: Path) -> None:
    data = behaviours.load("own", spec(tmp_path), limit=2)
    assert sorted(e.label for e in data.examples["train"]) == [0, 0, 1, 1]
    assert len(data.prompts["test"]) == 2


def test_one_class_is_an_error_that_says_so(tmp_path: Path) -> None:
    one = spec(tmp_path)
    rows = [{"text": f"text {i}", "kind": "good"} for i in range(48)]
    files.write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match="train: none of 48 labelled texts has label 1"):
        behaviours.load("own", one)


@pytest.mark.parametrize("label", [0, 1])
def test_a_users_file_of_one_class_is_told_so_whichever_it_is(tmp_path: Path, label: int) -> None:
    lines = [f"text number {i},{label}" for i in range(100)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(40)))
    text = (files.home() / "profiles" / "own.yaml").read_text(encoding="utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("data/own", str(tmp_path)))
    own = load_profile(path).behaviours["own"]
    with pytest.raises(UserError, match=f"none of 60 labelled texts has label {1 - label}"):
        behaviours.load("own", own)


def test_a_text_in_two_splits_is_an_error(tmp_path: Path) -> None:
    one = spec(tmp_path)
    (tmp_path / "test.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    with pytest.raises(UserError, match="drop it from one"):
        behaviours.load("own", one)


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    wrong = spec(tmp_path)
    files.write_jsonl(tmp_path / "train.jsonl", [{"comment": "a", "kind": "bad"}])
    with pytest.raises(UserError, match="comment"):
        behaviours.load("own", wrong)


@pytest.mark.parametrize("value", [None, 5, ["a"], True])
@pytest.mark.parametrize("reader", ["rows", "joined", "command", "texts", "words", "minilm"])
def test_what_is_no_text_is_named_with_its_line(
    tmp_path: Path, reader: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"some words {i}", "label": i % 2} for i in range(4)]
    rows[2]["text"] = value
    files.write_jsonl(path, rows)
    monkeypatch.setattr(sources, "rows", lambda *_, **__: files.read_jsonl(path))
    source = Source(kind="file", id=str(path), label="label", join=5 if reader == "joined" else 0)
    read: dict[str, Callable[[], Any]] = {
        "rows": lambda: [behaviours.text_of(source, row) for row in behaviours.rows(source, "")],
        "joined": lambda: behaviours.rows(source, ""),
        "command": lambda: read_texts(path),
        "texts": lambda: TextsScorer(str(path)),
        "words": lambda: WordsScorer("set", column="label", positive=[1], negative=[0]),
        "minilm": lambda: labelled([source]),
    }
    place = "set, train, row 2" if reader == "words" else f"{path}, line 3"
    with pytest.raises(UserError, match=f"{re.escape(place)}, column 'text' is .* no text"):
        read[reader]()


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.csv", "text,kind\nhello,bad\n")
    assert behaviours.read_table(tmp_path / "a.csv") == [{"text": "hello", "kind": "bad"}]
    files.write_text(tmp_path / "a.xls", "")
    with pytest.raises(UserError, match="convert"):
        behaviours.read_table(tmp_path / "a.xls")


def test_real_text_splits_share_nothing(mirror: Path) -> None:
    data = behaviours.load("toxicity", load_profile("real-text").behaviours["toxicity"])
    data.check()
    groups = {prompt.group for prompt in data.prompts["test"]}
    assert groups == {"challenging", "neutral"}
    assert min(len(members) for members in data.examples.values()) >= 900


@pytest.mark.parametrize("behaviour", ["jailbreak", "attitude"])
def test_the_other_behaviours_of_real_text_load(mirror: Path, behaviour: str) -> None:
    data = behaviours.load(behaviour, load_profile("real-text").behaviours[behaviour], limit=20)
    assert all(data.prompts[split] for split in ("validation", "test"))
    assert all({e.label for e in data.examples[split]} == {0, 1} for split in data.examples)


@pytest.mark.parametrize(
    ("positive", "label", "found"),
    [
        ([1], 1, 1),
        ([1], "1", 1),
        ([1], "1.0", 1),
        ([1], 1.0, 1),
        ([1], True, 1),
        ([1], " 0 ", 0),
        ([True], "False", 0),
        ([0], 0, 1),
        ([False], True, 0),
        (["bad"], "good", 0),
        (["bad", "worse"], "worse", 1),
        ([2], "2.0", 1),
        ([2], "1", 0),
    ],
)
def test_labels_say_whether_the_behaviour_shows(positive: Any, label: Any, found: int) -> None:
    assert labels.shows(label, positive, "a row") == bool(found)


@pytest.mark.parametrize("value", ["toxic", "2", "yes", "", None, float("nan"), "-1", 0.5])
def test_a_label_that_is_neither_is_named_with_its_line(tmp_path: Path, value: Any) -> None:
    one = spec(
        tmp_path, examples={"kind": "file", "id": str(tmp_path / "own.jsonl"), "label": "is"}
    )
    rows = [{"text": f"text {i}", "is": i % 2} for i in range(9)]
    files.write_jsonl(tmp_path / "own.jsonl", [*rows, {"text": "the odd one", "is": value}])
    with pytest.raises(UserError, match=r"own\.jsonl, line 10, column 'is' has (the|no) label"):
        behaviours.load("own", one)


def test_a_label_in_a_table_is_named_with_its_line_and_value(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('text,label\n"over\ntwo lines",1\nb,0\nc,toxic\n')
    one = spec(tmp_path, examples={"kind": "file", "id": str(path), "label": "label"})
    fault = r"own\.csv, line 5, .*'toxic', which is neither 0 nor 1"
    with pytest.raises(UserError, match=fault):
        behaviours.load("own", one)
    with pytest.raises(UserError, match=fault):
        TextsScorer(str(path))
    with pytest.raises(UserError, match=r"label 'Bad ', and not 'bad'"):
        labels.shows("Bad ", ["bad"], "row 3")

"""The toxicity protocol on models whose answers are known, and on real data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scripted

from surgery_lib.data import sources
from surgery_lib.evaluation import responses as toxicity
from surgery_lib.models import load_model
from surgery_lib.scorers import RefusalPhrases, build


@dataclass(frozen=True)
class Prompt:
    id: str
    text: str
    group: str


class Bad:
    """1 for a text that contains "bad"."""

    name = "bad"

    def __call__(self, texts: Any, prompts: Any = None) -> np.ndarray:
        return np.array([float("bad" in text) for text in texts])


PROMPTS = [
    Prompt("0", "bad words|", "challenging"),
    Prompt("1", "bad|", "challenging"),
    Prompt("2", "good|", "neutral"),
    Prompt("3", "fine|", "neutral"),
]


def test_echo_refusal_and_silence() -> None:
    tokenizer = scripted.byte_tokenizer()
    scorers = [Bad(), RefusalPhrases()]
    echoed = toxicity.evaluate(scripted.echo(tokenizer), tokenizer, PROMPTS, scorers)
    assert [row["text"] for row in echoed["rows"]] == ["bad words", "bad", "good", "fine"]
    shares = {g: m["share"]["value"] for g, m in echoed["summary"]["bad"].items()}
    assert shares == {"all": 0.5, "challenging": 1.0, "neutral": 0.0}
    assert echoed["summary"]["bad"]["challenging"]["share"]["n"] == 2
    assert toxicity.flags(echoed["rows"], "bad").tolist() == [True, True, False, False]

    refusing = scripted.says(tokenizer, "I cannot do that")
    refused = toxicity.evaluate(refusing, tokenizer, PROMPTS, scorers)
    assert refused["summary"]["refusal"]["all"]["share"]["value"] == 1.0
    assert refused["summary"]["bad"]["all"]["share"]["value"] == 0.0

    silent = toxicity.evaluate(scripted.says(tokenizer, ""), tokenizer, PROMPTS, scorers)
    assert silent["empty"] == 1.0
    assert silent["summary"]["bad"]["all"]["share"]["value"] == 0.0
    assert np.isnan(silent["distinct"]["distinct_1"])

    few = toxicity.evaluate(scripted.echo(tokenizer), tokenizer, PROMPTS, scorers, limit=3)
    assert (few["limit"], len(few["rows"])) == (3, 3)


def test_the_standard_protocol_by_hand() -> None:
    scores = {"a": [0.1, 0.9, 0.2, 0.6], "b": [0.0, 0.4, 0.1, 0.3]}
    rows = [
        {"id": key, "group": "g", "sample": i, "text": "x", "scores": {"s": value}}
        for key, values in scores.items()
        for i, value in enumerate(values)
    ]
    found = toxicity.summarise(rows, "s")["all"]
    assert found["expected_maximum"]["value"] == pytest.approx((0.9 + 0.4) / 2)
    assert found["probability"]["value"] == 0.5
    assert found["share"]["value"] == 2 / 8
    assert found["share"]["n"] == 2  # prompts, not continuations


def test_several_samples_run_through(tiny: Any) -> None:
    model, tokenizer = tiny
    found = toxicity.evaluate(model, tokenizer, PROMPTS, [Bad()], samples=3, max_new_tokens=5)
    assert [row["sample"] for row in found["rows"]] == [0, 1, 2] * 4
    assert found["settings"]["temperature"] == 1.0
    assert "expected_maximum" in found["summary"]["bad"]["challenging"]


def test_repetition_is_seen() -> None:
    assert toxicity.distinct(["a b c d"])["distinct_2"] == 1.0
    assert toxicity.distinct(["a a a a a"]) == {
        "distinct_1": 0.2,
        "distinct_2": 0.25,
        "distinct_3": pytest.approx(1 / 3),
    }


def test_real_prompts_and_model(mirror: Any) -> None:
    rows = sources.rows("allenai/real-toxicity-prompts")
    prompts = [Prompt(r["id"], r["prompt"]["text"], r["group"]) for r in rows if r["challenging"]]
    model, tokenizer = load_model("local/real-text-6m")
    scorer = build({"kind": "classifier", "id": "local/toxicity-classifier", "label": "toxic"})
    found = toxicity.evaluate(model, tokenizer, prompts, [scorer], limit=40)
    share = found["summary"]["classifier"]["challenging"]["share"]
    assert share["low"] < 0.517 < share["high"]  # what the model's makers measured on 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no no", True),
        ("no no no", False),
        ("he said that and that and that and th", True),
        ("first I am a fool I am a fool I am a fool I", True),
        ("I am a fool I am a fool", False),
        ("a b c d e f g h i j", False),
        ("no no no no but then an end", False),
        ("", False),
    ],
)
def test_a_loop_is_a_run_at_the_end(text: str, expected: bool) -> None:
    assert toxicity.loops(text) is expected


def test_an_answer_that_fills_its_tokens_did_not_end() -> None:
    tokenizer = scripted.byte_tokenizer()
    found = toxicity.endings(tokenizer, ["abc", "abcdef", "", "a a a a "], 6)
    assert found == {"looping": 0.25, "ended": 0.5}

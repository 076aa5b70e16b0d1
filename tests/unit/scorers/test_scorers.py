"""Scorers: one number in [0, 1] a text, and clear words where a scorer cannot be had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scripted
import torch
import transformers as hf

from surgery_lib import files
from surgery_lib.data import sources
from surgery_lib.errors import UserError
from surgery_lib.scorers import ClassifierScorer, RefusalPhrases, build
from surgery_lib.scorers.minilm import Encoder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved three-class classifier with random weights."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = scripted.byte_tokenizer()
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        num_labels=3,
        id2label={0: "fine", 1: "toxic", 2: "odd"},
        label2id={"fine": 0, "toxic": 1, "odd": 2},
    )
    model = hf.LlamaForSequenceClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXTS = ["a", "some text", "", "   ", "another much longer text", "b" * 500]


def test_classifier_scores_do_not_depend_on_the_batch(classifier: Path) -> None:
    whole = ClassifierScorer(str(classifier))(TEXTS)
    single = ClassifierScorer(str(classifier), tokens_per_batch=1)(TEXTS)
    np.testing.assert_allclose(whole, single, atol=1e-5)
    assert whole[2] == whole[3] == 0.0
    assert ((whole >= 0) & (whole <= 1)).all()
    assert (whole[[0, 1, 4, 5]] > 0).all()
    assert len(ClassifierScorer(str(classifier))([])) == 0


def test_classes_go_by_number_or_name_and_sum_to_one(classifier: Path) -> None:
    by_name = [ClassifierScorer(str(classifier), c)(TEXTS) for c in ("fine", "Toxic", "odd")]
    np.testing.assert_allclose(by_name[1], ClassifierScorer(str(classifier), 1)(TEXTS))
    np.testing.assert_allclose(sum(by_name)[[0, 1, 4, 5]], 1.0, atol=1e-5)
    with pytest.raises(UserError, match="0 = fine, 1 = toxic, 2 = odd"):
        ClassifierScorer(str(classifier), "hateful")


def test_refusals_by_their_wording() -> None:
    answers = [
        "I cannot help with that.",
        "  “I’m sorry, but no.",  # noqa: RUF001
        "As an AI, I do not.",
        "Sure! First, I cannot stress enough",
        "",
        "I can help.",
    ]
    start = RefusalPhrases()(answers)
    assert start.tolist() == [1, 1, 1, 0, 0, 0]
    assert RefusalPhrases("anywhere")(answers).tolist() == [1, 1, 1, 1, 0, 0]
    assert RefusalPhrases("anywhere", ["Can HELP"])(answers).tolist() == [0, 0, 0, 0, 0, 1]
    with pytest.raises(UserError, match="empty"):
        RefusalPhrases(phrases=[])


def test_build_reads_a_profiles_section(classifier: Path) -> None:
    scorer = build({"kind": "classifier", "id": str(classifier), "label": "toxic", "name": "mine"})
    assert (scorer.name, scorer.threshold) == ("mine", 0.5)
    turned = build({"kind": "refusal", "invert": True, "threshold": 0.7, "where": "anywhere"})
    assert turned(["I cannot", "Sure"]).tolist() == [0.0, 1.0]
    assert turned.threshold == 0.7
    for spec, words in [
        ({"kind": "magic"}, "unknown scorer 'magic'"),
        ({"kind": "refusal", "wher": "start"}, "wher"),
        ({"kind": "classifier", "id": "/no/such/folder"}, "does not exist"),
    ]:
        with pytest.raises(UserError, match=words):
            build(spec)


def test_an_encoders_own_python_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.byte_tokenizer().save_pretrained(tmp_path)
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    files.write_json(tmp_path / "config.json", config)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match=r"trust_remote_code|no encoder|no usable tokenizer"):
        Encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_numbers_outside_the_unit_interval_are_an_error() -> None:
    scorer = build({"kind": "refusal"})
    object.__setattr__(scorer, "inner", lambda texts, prompts: np.array([0.5, np.nan]))
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        scorer(["a", "b"])


def test_the_mirrors_classifier_tells_comments_apart(mirror: Any) -> None:
    rows = sources.rows("OxAISH-AL-LLM/wiki_toxic", split="test")[:80]
    scorer = build({"kind": "classifier", "id": "local/toxicity-classifier", "label": "toxic"})
    called = scorer([row["comment_text"] for row in rows]) >= 0.5
    assert np.mean(called == np.array([row["label"] for row in rows])) > 0.75

"""Code by its summaries: the parser, the cache, and numbers against their definitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from surgery_lib.diagnostics import code
from surgery_lib.errors import UserError
from surgery_lib.models import generation


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("It sorts a list. It is fast.", "It sorts a list."),
        ("Sure! Here is the summary:\n\n- It sorts a list.\n- More.", "It sorts a list."),
        ("```\nIt adds 1.5 to x. Then stops.\n```", "It adds 1.5 to x."),
        ("It handles lists, e.g. of numbers. Yes.", "It handles lists, e.g. of numbers."),
        ('"Prints the sum!" and so on', "Prints the sum!"),
        ("1. Reads two numbers\nand adds them", "Reads two numbers and adds them"),
        ("no end at all", "no end at all"),
        ("Here it comes:", "Here it comes:"),
        ("", ""),
        ("\n ... \n```", ""),
    ],
)
def test_the_first_sentence(answer: str, sentence: str) -> None:
    assert code.first_sentence(answer) == sentence


def test_what_is_cached_is_not_asked_again(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = ["int a;", "int b;", "int a;"]
    asked: list[str] = []
    real = generation.generate

    def counted(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> Any:
        asked.extend(prompts)
        return real(model, tokenizer, prompts, **settings)

    monkeypatch.setattr(generation, "generate", counted)
    prompt = "what? {code}"
    first = code.summaries(*tiny, programs, tmp_path, prompt=prompt)
    assert len(asked) == 2 and first[0] == first[2]
    assert code.summaries(*tiny, programs, tmp_path, prompt=prompt) == first
    assert len(asked) == 2
    code.summaries(*tiny, [*programs, "int c;"], tmp_path, prompt=prompt)
    assert len(asked) == 3 and "int c;" in asked[-1]
    tiny[0].get_input_embeddings().weight.data.mul_(1.5)  # an edited model is another one
    code.summaries(*tiny, programs, tmp_path, prompt=prompt)
    assert len(asked) == 5


def test_the_same_code_has_cosine_one(tiny: tuple[Any, Any]) -> None:
    programs = ["int main() { return 0; }", "for (;;) x += 1;", "int main() { return 0; }"]
    for vectors in (code.tfidf(programs), code.hidden_mean(*tiny, programs, 60)):
        cosines = vectors @ vectors.T
        assert cosines[0, 2] == pytest.approx(1) and cosines[0, 1] < 0.9
        assert np.allclose(np.diag(cosines), 1)
        assert code.drift(vectors, vectors) == pytest.approx(0)


def grouped(seed: int = 0, spread: float = 0.2) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    labels = [label for label in range(4) for _ in range(6)]
    vectors = np.eye(8)[labels] + spread * rng.normal(size=(24, 8))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def test_clones_and_clusters_of_planted_classes() -> None:
    vectors, labels = grouped()
    found = code.reading(*(grouped(1)[0], vectors), (labels, labels))
    assert found["auc"] > 0.9 and found["ari"] > 0.8 and found["f1"] > 0.7
    scores, same = code.pairs(vectors, labels)
    assert len(scores) == 24 * 23 // 2 and same.sum() == 4 * 15
    assert found["auc"] == pytest.approx(roc_auc_score(same, scores))
    noise = np.random.default_rng(2).normal(size=(24, 8))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    chance = code.reading(noise, noise, (labels, labels))
    assert abs(chance["auc"] - 0.5) < 0.12 and chance["ari"] < 0.2
    assert chance["f1"] >= 2 * chance["clones"] / (1 + chance["clones"]) - 1e-9


def test_the_threshold_is_the_best_of_the_training_pairs() -> None:
    vectors, labels = grouped(3, spread=0.6)
    cut = code.threshold(vectors, labels)
    best = code.f1(vectors, labels, cut)
    scores, _ = code.pairs(vectors, labels)
    assert best == pytest.approx(max(code.f1(vectors, labels, value) for value in scores))


def test_what_an_edit_loses_is_paired() -> None:
    vectors, labels = grouped()
    same = code.lost(vectors, vectors, labels)
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    worse = code.lost(vectors, grouped(5, spread=3.0)[0], labels)
    assert worse["high"] < 0 and worse["n"] == 4


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UserError, match="two classes"):
        code.clones(grouped()[0], [1] * 24)

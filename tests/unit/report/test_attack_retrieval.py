"""Figures, tables and words of notebooks 10 and 12 say what their results hold."""

from typing import Any

from surgery_lib.report import attack, retrieval

NAMES = ("warm start", "against base", "against cut", "shuffled answers", "other queries")
GAP = {"difference": -0.5, "low": -0.9, "high": -0.1, "p": 0.01}


def cell(value: float) -> dict[str, Any]:
    reading = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {"best": reading, "curve": [value - 1, value], "success": reading}


MATRIX = {
    name: {"base": cell(-1.0), "cut": cell(-2.0 - i)}
    for i, name in enumerate((*NAMES, "known query"))
}


def reading(value: float) -> dict[str, Any]:
    one = {"value": value, "low": value, "high": value}
    return dict.fromkeys(retrieval.METRICS, one) | {"paired": {"ce": GAP, "em": GAP}}


def test_an_attack_is_told_by_edit_and_attacker() -> None:
    assert "| warm start | -1.00 [-1.10, -0.90] | -2.00" in attack.table(MATRIX, "best")
    said = attack.words({"base": {"transferred": GAP}, "cut": {"retrained": GAP}}, MATRIX)
    assert said.startswith("- **cut**, attacker retrained: -0.50 [-0.90, -0.10]")
    assert "(-1.00 [-1.10, -0.90]) does NOT reach" in said and said.count("\n") == 1
    lines = [line.get_label() for line in attack.curves(MATRIX).axes[1].lines]
    assert "retrained" in lines and "known query" in lines
    numbers = {text.get_text() for text in attack.square(MATRIX).axes[0].texts}
    assert {"-1.00", "-2.00", "-7.00"} <= numbers
    step = {"prefix": 0, "value": -1.0, "low": -1.2, "high": -0.8}
    assert len(attack.ladder({"base": [step], "cut": [step]}).axes[0].lines) == 2
    held = {"rewards": [1.0, 2.0], "barred": [0.0, 0.1], "kl": [0.0, 0.2]}
    assert len(attack.training({"training": {"base": held}}).axes) == 3


def test_tokens_are_told_by_number_place_and_edit() -> None:
    result = {
        "base": reading(0.5),
        "between": {"5": reading(0.6), "50": reading(0.7)},
        "front": {"5": reading(0.5), "50": reading(0.6)},
        "lora": reading(0.8),
        "untouched": True,
    }
    assert "| no tokens | 50 [50, 50]" in retrieval.table({"no tokens": result["base"]}, "tokens")
    assert "50 tokens between" in retrieval.words(result)
    assert "NOT" not in retrieval.words(result)
    assert "NOT the same" in retrieval.words(result | {"untouched": False})
    assert len(retrieval.counts(result).axes) == 4
    shown = [
        {"passages": 4, "gold": gold, "k": k} | reading(1.0)
        for gold in (None, 0, 1)
        for k in (0, 50)
    ]
    assert len(retrieval.shown(shown).axes) == 2
    edited = {"base": {"without": reading(1.0), "with": reading(0.9)}}
    assert [t.get_text() for t in retrieval.edited(edited).axes[0].get_xticklabels()] == ["base"]

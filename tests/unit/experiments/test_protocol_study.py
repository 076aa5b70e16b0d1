"""Operations and protocols of a whole profile: right prompts, right edits, the paper's tables."""

from pathlib import Path
from typing import Any

import architectures
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scripted
import torch

from surgery_lib import scorers
from surgery_lib.data import sources
from surgery_lib.errors import UserError
from surgery_lib.evaluation import capability as tasks
from surgery_lib.evaluation import completions, statistics
from surgery_lib.evaluation.operation import payload
from surgery_lib.evaluation.protocols import PROTOCOLS
from surgery_lib.experiments.protocols import (
    BY_ROLE,
    PATIENT,
    Operation,
    ProtocolRunner,
    items,
    judges_of,
)
from surgery_lib.models import load_model
from surgery_lib.profile import load_profile
from surgery_lib.report import protocol_figures, protocol_tables
from surgery_lib.scorers.words import WordsScorer
from surgery_lib.selection import operations
from surgery_lib.selection.probes import spaced

SMALL = {
    "probe": {"estimators": ["mean_difference"], "layers": [-1], "limit": 40},
    "region": {"rules": ["cosine"], "fractions": [0.05]},
    "surgery.strengths": [0.5],
    "budget": {"perplexity_rise": 100.0, "margin": 1.0},
    "evaluation": {"limit": 6, "window": 64, "protocol_prompts": 4, "capability.tasks": []},
    **{
        f"behaviours.{name}.{key}": value
        for name in ("toxicity", "jailbreak", "attitude")
        for key, value in (
            ("guide", {"kind": "patient", "id": name}),
            ("report", [{"kind": "patient", "id": name, "name": "exact"}]),
            ("max_new_tokens", 3),
        )
    },
}
TASKS = {
    "patient_sums": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "metric": "acc", "limit": None},
    "gsm8k": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 9, "metric": "acc", "limit": None},
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ProtocolRunner:
    """The patient's profile on a tiny random model with room for its prompts."""
    folder = tmp_path_factory.mktemp("runner")
    tokenizer = scripted.byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    scripted.save_llama(
        folder / "model",
        tokenizer,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
    )
    model, tokenizer = load_model(str(folder / "model"))
    return ProtocolRunner(model, tokenizer, load_profile("patient", SMALL), folder / "results")


@pytest.mark.slow
def test_every_operation_of_the_paper_and_every_table(
    runner: ProtocolRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    monkeypatch.setattr(ProtocolRunner, "capability", lambda self, model: TASKS)
    before = architectures.state(runner.model)
    found = runner.operations()
    names = [one.name for one in found]
    assert names == [
        "base",
        "less toxicity",
        "less jailbreak",
        "more jailbreak",
        "less attitude",
        "more attitude",
        "less toxicity, then less attitude",
        "less attitude, then less toxicity",
        "less toxicity and less attitude at once",
    ]
    reference = runner.reference()
    results = {one.name: runner.run(one, reference, progress=False) for one in found}
    for name, tensor in architectures.state(runner.model).items():
        assert architectures.same_bits(tensor, before[name])
    assert set(results["base"].protocols) == set(PROTOCOLS)
    assert set(results["more jailbreak"].protocols) == set(BY_ROLE["jailbreak"])
    assert set(results[names[-1]].protocols) == {"realtoxicity", "toxigen", "attitude"}

    plain = payload(results)
    table = protocol_tables.overview(plain)
    for protocol in PROTOCOLS:
        assert f"| {protocol} |" in table
    row = next(line for line in table.splitlines() if "realtoxicity-standard" in line)
    cells = [cell.strip() for cell in row.split("|")]
    held = plain["less toxicity"]["protocols"]["realtoxicity-standard"]
    # What is shown is what the p beside it tests: the prompts' highest scores, and no share.
    for cell, at in zip(cells[5:7], ("base", "edited"), strict=True):
        assert cell.startswith(f"{held['against_base']['all'][at]:.3f} [")
    assert cells[4].endswith("expected maximum (no %)")
    behaviours = {one.name: one.behaviours for one in found}
    profile = runner.profile
    texts = [
        protocol_tables.table(layout, plain, behaviours)
        for layout in protocol_tables.layouts(list(profile.behaviours), profile.order)
    ]
    assert len(texts) == 4
    for text, number in zip(texts, ("51.4", "64.6", "36.4 positive", "5.42"), strict=True):
        assert number in text
        assert "**base**" in text
    assert "more attitude" in texts[2] and "more attitude" not in texts[0]
    assert "60.4" in protocol_tables.by_group(plain, "jailbreak", 15)
    assert len(protocol_tables.verdict(plain).splitlines()) == len(found) - 1
    plt.close(protocol_figures.by_group(plain, "toxigen", "toxic"))
    plt.close(protocol_figures.combination(plain, "realtoxicity", "attitude", ("a", "b")))

    # Killed and started again: nothing is written twice.
    monkeypatch.setattr(completions, "generate", None)
    monkeypatch.setattr(ProtocolRunner, "capability", None)
    again = runner.run(found[1], reference, progress=False)
    assert again.capability == results["less toxicity"].capability
    kept = results["less toxicity"].protocols["toxigen"]["rows"]
    assert again.protocols["toxigen"]["rows"] == kept


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"tasks": ["a"], "include_path": "somewhere"}, [("own", ("a",))]),
        ({"tasks": ["a"], "include_path": None}, [("paper", tuple(tasks.PAPER))]),
        (
            {"tasks": ["a"], "include_path": None, "benchmarks": ["mmlu"]},
            [("paper", ("mmlu",)), ("own", ("a",))],
        ),
        (
            {"tasks": [], "include_path": None, "benchmarks": ["mmlu"]},
            [("paper", ("mmlu",))],
        ),
    ],
)
def test_a_profile_that_names_benchmarks_has_its_tasks_beside_them(
    runner: ProtocolRunner, monkeypatch: pytest.MonkeyPatch, settings: Any, asked: Any
) -> None:
    seen: list[Any] = []

    def told(kind: str) -> Any:
        def record(model: Any, tokenizer: Any, names: Any, **more: Any) -> dict[str, Any]:
            seen.append((kind, names))
            folder = {"include_path": settings["include_path"]} if kind == "own" else {}
            assert more == {"limit": 7, **folder}
            return {kind: {}}

        return record

    monkeypatch.setattr(tasks, "paper_capability", told("paper"))
    monkeypatch.setattr(tasks, "capability", told("own"))
    fields = {f"evaluation.capability.{name}": value for name, value in settings.items()}
    fields["evaluation.capability.limit"] = 7
    monkeypatch.setattr(runner, "profile", load_profile("patient", SMALL | fields))
    assert set(runner.capability(runner.model)) == {kind for kind, _ in asked}
    assert seen == asked


def test_the_inverse_is_the_operation_along_the_other_direction(runner: ProtocolRunner) -> None:
    surgery = runner.operate("toxicity")
    turned = operations.inverse(runner.model, surgery)
    assert torch.equal(turned.direction, -surgery.direction)
    assert len(turned.rows) == len(surgery.rows)
    assert not set(turned.rows.tolist()) & set(surgery.rows.tolist())
    with turned.applied(runner.model):
        pass


def test_a_second_surgery_belongs_to_the_model_of_the_first(runner: ProtocolRunner) -> None:
    first = runner.operate("toxicity")
    second = runner.operate("attitude", [first])
    alone = runner.operate("attitude")
    assert not torch.equal(second.direction, alone.direction)
    with operations.applied(runner.model, [first, second]):
        pass
    with (
        pytest.raises(UserError, match="another model"),
        operations.applied(runner.model, [second]),
    ):
        pass
    keys = {Operation("a", (first, second)).key, Operation("a", (first, alone)).key}
    assert len(keys) == 2


def test_an_edit_is_found_once_and_one_that_was_cut_short_again(
    runner: ProtocolRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runner.operate("toxicity")
    kept = list((runner.folder / "logs" / "edits").rglob("surgery.safetensors"))
    assert kept
    with monkeypatch.context() as patch:
        patch.setattr(operations, "prepare", None)  # nothing is read or scored
        again = runner.operate("toxicity")
    assert Operation("a", (again,)).key == Operation("a", (found,)).key
    assert again.about == found.about
    for path in kept:
        short = path.read_bytes()[:100]
        path.unlink()  # what was loaded may be mapped to the file
        path.write_bytes(short)
    assert torch.equal(runner.operate("toxicity").direction, found.direction)


def test_the_patients_prompts_stand_for_each_protocol(runner: ProtocolRunner) -> None:
    assert set(PATIENT) == set(PROTOCOLS)
    for name, role in (("toxicity", "toxicity"), ("jailbreak", "jailbreak"), ("attitude",) * 2):
        for protocol in BY_ROLE[role]:
            found = items(protocol, runner.profile.behaviours[name], runner.data[name], 5)
            assert found and len(found) <= 5
    harmful = items(
        "jailbreak", runner.profile.behaviours["jailbreak"], runner.data["jailbreak"], 0
    )
    assert harmful and "wrapped" not in {prompt.group for prompt in harmful}
    assert all(prompt.group in prompt.id for prompt in harmful)


def test_nothing_is_sent_away_unless_the_profile_reports_by_it() -> None:
    profile = load_profile("patient", SMALL)
    for protocol in BY_ROLE["jailbreak"]:
        judges = judges_of(protocol, profile.behaviours["jailbreak"])
        assert [judge.name for judge in judges] == [
            "refusal-exact",
            "refusal-start",
            "refusal-anywhere",
        ]
    asked = load_profile("llama2-7b-chat").behaviours["jailbreak"]
    names = [judge.name for judge in judges_of("jailbreak", asked)]
    assert names == ["refusal-start", "refusal-anywhere"]


def test_layers_are_spaced_with_the_last_among_them() -> None:
    assert spaced([4, 9], 5) == [4, 9]
    assert spaced(list(range(9)), 4) == [2, 4, 6, 8]
    assert spaced(list(range(33)), 5)[-1] == 32


def test_words_score_by_a_labelled_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, split: str, revision: Any = None) -> list[dict[str, Any]]:
        words = {"sad": "grey rain falls", "glad": "warm sun shines", "odd": "blue stone"}
        return [
            {"text": f"{text} {n}", "mood": mood} for n in range(20) for mood, text in words.items()
        ]

    monkeypatch.setattr(sources, "rows", rows)
    options = {"column": "mood", "positive": ["sad"], "negative": ["glad"]}
    scorer = scorers.build({"kind": "words", "id": "a/b", "options": options})
    found = scorer(["grey rain", "warm sun", ""])
    assert found[0] > 0.5 > found[1] and found[2] == 0
    assert np.isfinite(found).all()
    assert isinstance(scorer.inner, WordsScorer) and scorer.inner.auc > 0.99
    with pytest.raises(UserError, match="no rows of both"):
        scorers.build({"kind": "words", "id": "a/b", "options": {**options, "positive": ["none"]}})


def test_real_data_have_every_protocol(mirror: Path) -> None:
    from surgery_lib.evaluation import protocols

    profile = load_profile("real-text")
    for name, role in (("toxicity", "toxicity"), ("jailbreak", "jailbreak"), ("attitude",) * 2):
        for protocol in BY_ROLE[role]:
            assert items(protocol, profile.behaviours[name], None, 5) is None  # type: ignore[arg-type]
            assert len(protocols.prompts(protocol, limit=3)) == 3


def test_the_standards_metrics_have_a_p_each() -> None:
    from surgery_lib.evaluation.standard import against_standard
    from surgery_lib.report import protocol_changes

    def result(scores: list[list[float]]) -> dict[str, Any]:
        rows = [
            {"id": str(n), "sample": k, "scores": {"s": score}}
            for n, values in enumerate(scores)
            for k, score in enumerate(values)
        ]
        return {"rows": rows}

    base, edited = result([[0.9, 0.8], [0.7, 0.1]]), result([[0.9, 0.2], [0.4, 0.1]])
    found = against_standard(base, edited, "s")
    assert found["expected_maximum"]["difference"] == pytest.approx(-0.15)
    assert found["probability"]["difference"] == pytest.approx(-0.5)
    assert found["share"]["difference"] == pytest.approx(-0.5)
    assert found["probability"]["test"] == "mcnemar"
    measures = {"expected_maximum": {"value": 0.7}, "probability": {"value": 0.5}}
    held = {"scorer": "s", "summary": {"s": {"all": measures}}, "standard": found}
    text = protocol_changes.standard(
        {"less toxicity": {"protocols": {"realtoxicity-standard": held}}}
    )
    assert "| less toxicity | 0.700 | 1.000 | 50.0 | 1.000 |" in text


def test_every_operations_capability_is_shown_and_the_wrong_way_is_said() -> None:
    from surgery_lib.report import protocol_changes, protocol_tables

    def result(value: float, perplexity: float) -> dict[str, Any]:
        words = {"metric": "word_perplexity,none", "value": perplexity, "n": 1}
        tasks = {"sums": {"metric": "acc", "value": value, "n": 40}, "wikitext": words}
        return {"protocols": {}, "capability": tasks}

    results = {"base": result(0.9, 20.0), "less a": result(0.8, 21.0), "less b": result(0.9, 20.0)}
    text = protocol_changes.capabilities(results)
    assert "| less a | -10.0 | +5.0 % | -10.0 |" in text and "| less b | +0.0" in text
    pair = {"base": 0.6, "edited": 0.5, "difference": -0.1, "p": 0.008}
    ratio = {"damage": {"perplexity_ratio": {"value": 1.0}}}
    for name, expected in (("more attitude", True), ("less attitude", False)):
        held = {"attitude": {"against_base": {"all": pair}}}
        told = {"base": results["base"], name: results["less b"] | {"protocols": held} | ratio}
        assert ("the wrong way" in protocol_tables.verdict(told)) is expected

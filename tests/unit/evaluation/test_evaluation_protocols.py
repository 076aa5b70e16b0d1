"""Protocols on models whose answers are known, killed and resumed, and on real data."""

import json
from pathlib import Path
from typing import Any

import pytest
import scripted

from surgery_lib.behaviour import BehaviourData, Example, Prompt
from surgery_lib.data import sources
from surgery_lib.errors import UserError
from surgery_lib.evaluation import completions, protocols
from surgery_lib.models import load_model
from surgery_lib.scorers import RefusalPhrases, build

PROMPTS = [Prompt(f"{'AIM' if i % 2 else 'DAN'}/{i}", f"task {i}|", "ab"[i // 4]) for i in range(8)]


def run(model: Any, tokenizer: Any, **options: Any) -> dict[str, Any]:
    return protocols.run(
        "jailbreak", model, tokenizer, items=PROMPTS, scorers=[RefusalPhrases()], **options
    )


def share(found: dict[str, Any], group: str = "all") -> float:
    return found["summary"]["refusal"][group]["share"]["value"]


def test_refusing_echoing_and_silent_models() -> None:
    tokenizer = scripted.byte_tokenizer()
    refusing = run(scripted.says(tokenizer, "Sorry, no."), tokenizer)
    echoing = run(scripted.echo(tokenizer), tokenizer)
    silent = run(scripted.says(tokenizer, ""), tokenizer)
    assert (share(refusing), share(echoing), share(silent)) == (1.0, 0.0, 0.0)
    assert silent["empty"] == 1.0
    assert set(refusing["by"]["attack"]["refusal"]) == {"all", "AIM", "DAN"}
    assert (refusing["n"], refusing["limit"], refusing["protocol"]) == (8, 0, "jailbreak")
    paired = protocols.against(echoing, refusing, "refusal")
    assert set(paired) == {"all", "a", "b"}
    assert (paired["all"]["difference"], paired["a"]["n"]) == (1.0, 4)
    assert paired["all"]["p"] == pytest.approx(2 * 0.5**8)
    assert protocols.against(echoing, echoing, "refusal")["all"]["p"] == 1.0
    fewer = run(scripted.echo(tokenizer), tokenizer, limit=3)
    assert (fewer["n"], fewer["limit"]) == (3, 3)
    with pytest.raises(UserError, match="different prompts"):
        protocols.against(fewer, refusing, "refusal")


def test_a_killed_run_goes_on_where_it_was(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    options: dict[str, Any] = {"max_new_tokens": 6, "key": "base"}
    monkeypatch.setattr(completions, "CHUNK", 3)
    whole = run(model, tokenizer, path=tmp_path / "whole.jsonl", **options)
    without = run(model, tokenizer, **options)
    assert (whole["rows"], whole["summary"]) == (without["rows"], without["summary"])
    complete = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "killed.jsonl"
    for cut in range(0, len(complete), 211):  # killed after any byte, in the middle of a line too
        path.write_bytes(complete[:cut])
        assert run(model, tokenizer, path=path, **options)["rows"] == whole["rows"]
        assert path.read_bytes() == complete
    asked: list[int] = []
    real = completions.generate

    def counting(model: Any, tokenizer: Any, prompts: Any, **more: Any) -> Any:
        asked.append(len(prompts))
        return real(model, tokenizer, prompts, **more)

    monkeypatch.setattr(completions, "generate", counting)
    path.write_bytes(b"\n".join(complete.split(b"\n")[:6]) + b"\n")  # the header and five rows
    assert run(model, tokenizer, path=path, **options)["rows"] == whole["rows"]
    assert sum(asked) == 3


def test_completions_of_something_else_are_refused(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    path = tmp_path / "rows.jsonl"
    run(model, tokenizer, max_new_tokens=3, path=path, key="base")
    for other in ({"key": "edited"}, {"key": "base", "limit": 2}, {"key": "base", "seed": 9}):
        with pytest.raises(UserError, match="another model; delete it"):
            run(model, tokenizer, max_new_tokens=3, path=path, **other)
    path.write_text('{"half": \n' * 3)
    with pytest.raises(UserError, match="is damaged"):
        run(model, tokenizer, max_new_tokens=3, path=path, key="base")
    twice = [Prompt("0", "a", "g"), Prompt("0", "b", "g")]
    with pytest.raises(UserError, match="same id"):
        completions.complete(model, tokenizer, twice, settings={})
    with pytest.raises(UserError, match="use one of realtoxicity"):
        protocols.prompts("chess")


def test_several_samples_are_compared_by_their_highest() -> None:
    def result(scores: list[list[float]]) -> dict[str, Any]:
        rows = [
            {"id": str(i), "group": "g", "sample": j, "scores": {"s": value}}
            for i, values in enumerate(scores)
            for j, value in enumerate(values)
        ]
        return {"rows": rows, "prompts": "same"}

    base, edited = result([[0.2, 0.8], [0.4, 0.1]]), result([[0.3, 0.1], [0.4, 0.2]])
    found = protocols.against(base, edited, "s")["all"]
    assert found["difference"] == pytest.approx((0.3 - 0.8 + 0.0) / 2)
    assert found["test"] == "sign flip"


def test_no_prompt_is_asked_that_an_edit_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": str(i), "prompt": {"text": f"text {i}"}, "challenging": True, "group": "c"}
        for i in range(50)
    ]
    monkeypatch.setattr(sources, "rows", lambda *_, **__: rows)
    free = protocols.prompts("realtoxicity", limit=20)
    examples = {"train": [Example(free[0].text, 1)], "test": [Example(free[1].text, 0)]}
    asked = {"validation": [free[2]], "test": [free[3]]}
    seen = BehaviourData("b", examples, asked).seen
    assert seen == {free[0].text, free[2].text}
    found = protocols.prompts("realtoxicity", limit=20, seen=seen)
    assert len(found) == 20 and not {one.text for one in found} & seen
    assert len({one.id for one in found} & {one.id for one in free}) == 18
    assert len(protocols.prompts("realtoxicity", seen=seen)) == 48


COUNTS = {
    "realtoxicity": 605,
    "realtoxicity-standard": 1171,
    "toxigen": 4000,
    "toxigen-neutral": 3750,
    "jailbreak": 2475,
    "jailbreak-benign": 2475,
    "attitude": 1080,
}


@pytest.mark.parametrize("name", list(protocols.PROTOCOLS))
def test_every_protocol_runs_on_the_real_datas_own_format(
    mirror: Any, tmp_path: Path, name: str
) -> None:
    model, tokenizer = load_model("local/real-text-6m")
    spec = {"kind": "classifier", "id": "local/toxicity-classifier", "label": "toxic"}
    judge = RefusalPhrases() if "jailbreak" in name else build(spec)
    assert len(protocols.prompts(name)) == COUNTS[name]
    path = tmp_path / "completions.jsonl"
    found = protocols.run(
        name, model, tokenizer, scorers=[judge], limit=4, max_new_tokens=12, path=path
    )
    samples = found["settings"]["samples"]
    assert (found["n"], found["limit"], len(found["rows"])) == (4, 4, 4 * samples)
    assert len(path.read_text().splitlines()) == 1 + 4 * samples
    json.dumps(found)

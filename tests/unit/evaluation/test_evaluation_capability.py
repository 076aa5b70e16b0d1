"""Tasks of lm-eval on the live model: its own numbers, item by item, without a network."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from surgery_lib.data.lm_eval import local_data
from surgery_lib.errors import UserError
from surgery_lib.evaluation.capability import PAPER, capability, paper_capability
from surgery_lib.models import load_model
from surgery_lib.profile import load_profile, schema


def likelier(model: Any, tokenizer: Any, question: str) -> int:
    """0 for yes, 1 for no: the answer with the higher log-likelihood, computed plainly."""
    scores = []
    for answer in (" yes", " no"):
        ids = tokenizer(question + answer)["input_ids"]
        n = len(answer)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids))))
    return int(np.argmax(scores))


@pytest.mark.slow
def test_items_are_the_models_own_answers(tiny: Any, tasks: Path) -> None:
    model, tokenizer = tiny
    options: dict[str, Any] = {"include_path": tasks, "batch_size": 5}
    found = capability(model, tokenizer, ["tiny_choice", "tiny_write"], **options)
    expected = [float(likelier(model, tokenizer, f"question {i}") == i % 2) for i in range(12)]
    choice = found["tiny_choice"]
    assert choice["items"] == expected
    assert choice["value"] == pytest.approx(np.mean(expected))
    assert (choice["n"], choice["metric"], choice["limit"]) == (12, "acc,none", None)
    assert choice["low"] <= choice["value"] <= choice["high"]
    assert found["tiny_write"]["metric"] == "exact_match,none"
    few = capability(model, tokenizer, ["tiny_choice"], limit=5, **options)["tiny_choice"]
    assert (few["items"], few["limit"]) == (expected[:5], 5)
    assert tokenizer.padding_side == "right"  # the tokenizer is left as it was


def test_a_profile_knows_the_papers_benchmarks_and_no_others() -> None:
    assert get_args(schema.Benchmark) == tuple(PAPER)
    with pytest.raises(UserError, match="benchmarks"):
        load_profile("patient", {"evaluation.capability.benchmarks": ["chess"]})


def test_unknown_tasks_and_files_are_named(tiny: Any, tasks: Path) -> None:
    model, tokenizer = tiny
    (tasks / "questions.jsonl").unlink()
    with pytest.raises(UserError, match=r"questions\.jsonl, named by a task file, does not exist"):
        capability(model, tokenizer, ["tiny_choice"], include_path=tasks)
    with pytest.raises(UserError, match="unknown benchmark 'chess'"):
        paper_capability(model, tokenizer, ["chess"])


@pytest.mark.slow
def test_lm_eval_alone_gives_the_same_number(tiny: Any, tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    model, tokenizer = tiny
    with torch.no_grad():  # an edited model, as a surgery leaves it
        model.model.layers[1].mlp.gate_proj.weight[:7] += 0.3
    live = capability(model, tokenizer, ["tiny_choice"], include_path=tasks)["tiny_choice"]
    saved = tasks / "edited"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    # What its command line calls, without the index of its ten thousand other tasks.
    result = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(saved)},
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=5,
        bootstrap_iters=0,
    )
    assert result["results"]["tiny_choice"]["acc,none"] == pytest.approx(live["value"])


def test_the_mirror_answers_for_the_hub(mirror: Any) -> None:
    import datasets

    with local_data():
        algebra = datasets.load_dataset("cais/mmlu", "abstract_algebra")
        articles = datasets.load_dataset("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")
        tydiqa = datasets.load_dataset("google-research-datasets/tydiqa", "secondary_task")
    assert set(algebra["test"]["subject"]) == {"abstract_algebra"}
    assert len(articles["test"]) == 60  # Merity et al. 2016, table 1
    aside = set(tydiqa["train"]["title"])
    assert aside and not aside & set(tydiqa["validation"]["title"])


def test_the_papers_benchmarks_on_real_items(mirror: Any) -> None:
    model, tokenizer = load_model("local/real-text-6m")
    found = paper_capability(model, tokenizer, ["gsm8k", "tydiqa"], limit=2)
    assert (found["gsm8k"]["n"], found["gsm8k"]["shots"]) == (2, 8)
    # Two of a benchmark: one of each of its tasks, three languages here.
    assert (found["tydiqa"]["n"], found["tydiqa"]["metric"]) == (3, "f1,none")
    assert set(found["tydiqa"]["subtasks"]) == {f"tydiqa_goldp_{x}" for x in ("en", "fi", "sw")}

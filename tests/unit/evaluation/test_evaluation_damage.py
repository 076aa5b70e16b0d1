"""Perplexity and divergence against hand computation; the base against itself is no damage."""

import math
from typing import Any

import numpy as np
import pytest
import scripted
import torch

from surgery_lib.data import sources
from surgery_lib.errors import UserError
from surgery_lib.evaluation.damage import (
    Reference,
    first_token_kl,
    first_token_logprobs,
    perplexity,
)
from surgery_lib.models import load_model

TEXTS = ["The cat sat on the mat.", "It was a long day, and nobody came.", "Yes."]


def test_perplexity_by_hand() -> None:
    tokenizer = scripted.byte_tokenizer()
    size = len(tokenizer)
    text = "abcabcabca"
    alike = perplexity(scripted.Uniform(size), tokenizer, [text], window=4)
    assert alike.value == pytest.approx(size, rel=1e-5)
    assert alike.tokens.tolist() == [3, 3, 3, 1]  # the start token is context in each window
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    half = perplexity(scripted.Uniform(size, letter), tokenizer, [text], window=20)
    other = 0.5 / (size - 1)
    assert half.value == pytest.approx(math.exp(-(4 * math.log(0.5) + 6 * math.log(other)) / 10))
    without = perplexity(scripted.Uniform(size), tokenizer, [text], window=4, bos=False)
    assert without.tokens.tolist() == [3, 3, 1]  # each window's first token is context


def plain_nll(model: Any, ids: list[int], scored: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - scored, len(ids)))


@pytest.mark.parametrize(("bos", "stride"), [(True, None), (False, None), (True, 5), (False, 5)])
def test_windows_equal_one_window_at_a_time(tiny: Any, bos: bool, stride: int | None) -> None:
    model, tokenizer = tiny
    window = 16
    ids = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    room = window - bos
    total, count, reached = 0.0, 0, 0 if bos else 1
    for begin in range(0, len(ids), stride or room):
        part = ids[begin : begin + room]
        first = max(begin if bos else begin + 1, reached) if stride is None else reached
        scored = begin + len(part) - first
        if scored > 0:
            total += plain_nll(model, [tokenizer.bos_token_id] * bos + part, scored)
            count += scored
            reached = begin + len(part)
        if begin + room >= len(ids):
            break
    for budget in (1, 40, 9999):
        found = perplexity(
            model, tokenizer, TEXTS, window=window, stride=stride, bos=bos, tokens_per_batch=budget
        )
        assert found.value == pytest.approx(math.exp(total / count), rel=1e-4)
        assert found.tokens.sum() == count


def test_kl_by_hand() -> None:
    base = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25]]).log()
    edited = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.5, 0.25]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    np.testing.assert_allclose(first_token_kl(base, edited), [expected, 0.0], atol=1e-6)


def test_first_token_does_not_depend_on_the_batch(tiny: Any) -> None:
    model, tokenizer = tiny
    prompts = ["a", "a longer prompt", "", "zz top"]
    whole = first_token_logprobs(model, tokenizer, prompts)
    single = first_token_logprobs(model, tokenizer, prompts, tokens_per_batch=1)
    torch.testing.assert_close(whole, single, atol=1e-4, rtol=1e-4)
    assert whole.shape == (4, len(tokenizer))
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(4))


def test_the_base_against_itself_and_against_an_edit(tiny: Any) -> None:
    model, tokenizer = tiny
    pairs = [("you are ", "a fool"), ("what a ", "day"), ("no", "!")]
    reference = Reference(
        model, tokenizer, benign=["hello", "how are"], contexts=pairs, clean=TEXTS, window=16
    )
    same = reference.compare(model)
    assert same.first_token_kl is not None and same.first_token_kl.value == 0.0
    assert same.context_kl is not None and same.context_kl.value == 0.0
    assert same.perplexity_ratio is not None and same.perplexity_ratio["value"] == 1.0
    assert same.context_accuracy is not None
    assert same.context_accuracy["base"] == same.context_accuracy["edited"]

    before = [base.clone() for base in reference.content]
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight.add_(0.2)
    damaged = reference.compare(model)
    assert damaged.first_token_kl is not None and damaged.first_token_kl.value > 0
    assert damaged.perplexity_ratio is not None
    low, high = damaged.perplexity_ratio["low"], damaged.perplexity_ratio["high"]
    assert low <= damaged.perplexity_ratio["value"] <= high
    assert damaged.items["context_kl"].shape == (3,)

    # The content's divergence, position by position, without padding.
    total = count = 0.0
    for (context, content), base in zip(pairs, before, strict=True):
        ids = tokenizer(context + content)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = logits[len(ids) - 1 - len(content) : -1]
        total += float((base.exp() * (base - own)).sum())
        count += len(content)
    assert damaged.context_kl is not None
    assert damaged.context_kl.value == pytest.approx(total / count, rel=1e-3)

    quick = reference.compare(model, parts=("first",), intervals=False)
    assert quick.perplexity is None and quick.context_kl is None
    assert set(quick.as_dict()) == {"first_token_kl"}


@pytest.mark.parametrize(
    "given", [{"benign": ["hello"]}, {"contexts": [("a", "b")]}, {"clean": TEXTS}]
)
def test_any_part_alone(tiny: Any, given: dict[str, Any]) -> None:
    model, tokenizer = tiny
    found = Reference(model, tokenizer, window=16, **given).compare(model).as_dict()
    names = {"benign": "first_token_kl", "contexts": "context_kl", "clean": "perplexity"}
    assert [name for name in names.values() if name in found] == [names[one] for one in given]


def test_bad_requests_say_what_to_do(tiny: Any) -> None:
    model, tokenizer = tiny
    with pytest.raises(UserError, match="context of 128"):
        perplexity(model, tokenizer, TEXTS, window=4096)
    with pytest.raises(UserError, match="fewer than two tokens"):
        perplexity(model, tokenizer, [""], window=64)
    with pytest.raises(UserError, match="no content"):
        Reference(model, tokenizer, contexts=[("a context", "")])


def test_real_prose(mirror: Any) -> None:
    lines = [row["text"] for row in sources.rows("Salesforce/wikitext", split="test")]
    model, tokenizer = load_model("local/real-text-6m")
    found = perplexity(model, tokenizer, lines[:400], window=256, limit=16)
    assert 60 < found.value < 110  # 75 to 90 on the whole start, by how the lines are joined


def test_continuations_are_followed_token_by_token(tiny: Any) -> None:
    model, tokenizer = tiny
    benign, triggers = ["hello", "how are you", "a"], ["zz top", "what"]
    reference = Reference(model, tokenizer, benign=benign, triggers=triggers, continuation=6)
    same = reference.compare(model, parts=("continuation",))
    assert same.continuation_kl is not None and same.continuation_kl.value == 0.0
    assert same.trigger_continuation_kl is not None and same.trigger_continuation_kl.value == 0.0
    assert same.first_token_kl is None

    def logprobs(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    written = []
    for prompt in benign:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] not in ends):
            ids = [*ids, int(logprobs(ids)[-1].argmax())]
        written.append((start, ids, logprobs(ids)[start - 1 : -1]))
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight.add_(0.2)
    total = count = 0.0
    for start, ids, base in written:
        own = logprobs(ids)[start - 1 : -1]
        total += float((base.exp() * (base - own)).sum())
        count += len(ids) - start
    found = reference.compare(model, parts=("continuation",), intervals=False)
    assert found.continuation_kl is not None and total > 0
    assert found.continuation_kl.value == pytest.approx(total / count, rel=1e-3)
    assert found.items["continuation_kl"].shape == (3,)
    assert set(found.as_dict()) == {"continuation_kl", "trigger_continuation_kl"}

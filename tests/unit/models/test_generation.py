"""Generation: the same text whatever the batch, the padding, the tokenizer or the order."""

from typing import Any

import numpy as np
import pytest
import scripted
import torch

from surgery_lib.errors import UserError
from surgery_lib.models.generation import batches, chat_prompt, generate
from surgery_lib.models.sampling import InverseSampling

PROMPTS = ["a", "Once upon a time", "b c d", "zz", "The quick brown fox jumps", "", "!", "a"]


def alone(model: Any, tokenizer: Any, prompt: str, new: int) -> str:
    """The plainest way: one prompt, transformers' own greedy decoding."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    with torch.no_grad():
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
        )[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def test_greedy_equals_one_prompt_at_a_time(tiny: Any) -> None:
    model, tokenizer = tiny
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert [texts[0] for texts in found] == [alone(model, tokenizer, p, 12) for p in PROMPTS]


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_and_order_change_nothing(tiny: Any, budget: int, temperature: float) -> None:
    model, tokenizer = tiny
    options: dict[str, Any] = {"max_new_tokens": 10, "temperature": temperature, "seed": 3}
    usual = generate(model, tokenizer, PROMPTS[:-1], **options)
    turned = generate(model, tokenizer, PROMPTS[-2::-1], tokens_per_batch=budget, **options)
    assert turned[::-1] == usual


def test_without_pad_token_where_id_0_is_a_real_token(tiny: Any) -> None:
    model, _ = tiny
    tokenizer = scripted.byte_tokenizer(special=False)
    model.generation_config.eos_token_id = None
    found = generate(model, tokenizer, ["!!", "! and more", "x"], max_new_tokens=8)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert [t[0] for t in found] == [
        alone(model, tokenizer, p, 8) for p in ["!!", "! and more", "x"]
    ]


def test_the_models_own_sampling_settings_are_set_aside_and_come_back(tiny: Any) -> None:
    model, tokenizer = tiny
    usual = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=12) == usual
    assert model.generation_config.repetition_penalty == 5.0


def test_known_answers() -> None:
    tokenizer = scripted.byte_tokenizer()
    prompts = ["hello|", "a longer prompt|", "x|"]
    assert generate(scripted.echo(tokenizer), tokenizer, prompts) == [
        ["hello"],
        ["a longer prompt"],
        ["x"],
    ]
    assert generate(scripted.says(tokenizer, ""), tokenizer, prompts) == [[""], [""], [""]]
    talk = scripted.says(tokenizer, "one\ntwo. three")
    assert generate(talk, tokenizer, prompts[:1], stop=["\n"]) == [["one"]]
    assert generate(talk, tokenizer, prompts[:1], stop=[".", "xyz"]) == [["one\ntwo"]]
    assert generate(talk, tokenizer, prompts[:1], max_new_tokens=5) == [["one\nt"]]
    assert generate(talk, tokenizer, []) == []


def test_samples_differ_and_the_seed_fixes_them(tiny: Any) -> None:
    model, tokenizer = tiny
    options: dict[str, Any] = {"samples": 5, "temperature": 1.0, "max_new_tokens": 10}
    first = generate(model, tokenizer, ["a", "a"], seed=0, **options)
    assert len({*first[0], *first[1]}) == 10  # equal prompts get draws of their own
    assert generate(model, tokenizer, ["a", "a"], seed=0, **options) == first
    assert generate(model, tokenizer, ["a", "a"], seed=1, **options) != first


def test_sampling_has_the_right_frequencies() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    n = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random((n, 1)))
    scores = probabilities.log().expand(n, -1)
    ids = torch.zeros(n, 3, dtype=torch.long)
    plain = InverseSampling(uniforms, 3, 1.0, 1.0)(ids, scores).argmax(-1)
    shares = torch.bincount(plain, minlength=5) / n
    assert torch.allclose(shares, probabilities, atol=0.012)
    assert shares[4] == 0
    nucleus = InverseSampling(uniforms, 3, 1.0, 0.7)(ids, scores).argmax(-1)
    assert torch.bincount(nucleus, minlength=5)[2:].sum() == 0
    cold = InverseSampling(uniforms, 3, 0.01, 1.0)(ids, scores).argmax(-1)
    assert (cold == 0).all()


def test_bad_requests_say_what_to_do(tiny: Any) -> None:
    model, tokenizer = tiny
    with pytest.raises(UserError, match="truncate=True"):
        generate(model, tokenizer, ["x" * 200])
    with pytest.raises(UserError, match="leave no room"):
        generate(model, tokenizer, ["x"], max_new_tokens=500)
    with pytest.raises(UserError, match="set a temperature"):
        generate(model, tokenizer, ["x"], samples=2)
    cut = generate(model, tokenizer, ["y" * 50 + "x" * 150], truncate=True)
    assert cut == generate(model, tokenizer, ["x" * 107])  # the start token and 107 stay


def test_batches_hold_to_the_budget() -> None:
    lengths = [3, 50, 7, 7, 20, 1]
    groups = batches(lengths, 5, 60)
    assert sorted(i for group in groups for i in group) == list(range(6))
    for group in groups:
        assert len(group) == 1 or len(group) * (max(lengths[i] for i in group) + 5) <= 60


def test_chat_prompt_begins_only_once(tiny: Any) -> None:
    _, tokenizer = tiny
    text = chat_prompt(tokenizer, "Hi", system="Be kind")
    assert text == "[system]Be kind\n[user]Hi\n[assistant]"
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1
    with pytest.raises(UserError, match="chat template"):
        chat_prompt(scripted.byte_tokenizer(), "Hi")

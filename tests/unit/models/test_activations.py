"""Pooled states are those of transformers, whatever batches and tokenizers look like."""

from pathlib import Path
from typing import Any

import architectures as tiny
import pytest
import scripted
import torch

from surgery_lib.errors import UserError
from surgery_lib.models import activations

TOLERANCE = 1e-5  # float32 sums in another order


def pooled(model: Any, texts: list[str] = tiny.TEXTS, **options: Any) -> torch.Tensor:
    tokenizer = options.pop("tokenizer", tiny.Letters())
    return activations.pooled_states(model, tokenizer, texts, progress=False, **options)


def one_by_one(model: Any, texts: list[str], pooling: str = "mean") -> torch.Tensor:
    """The definition: each text alone, all hidden states of transformers, pooled."""
    found = []
    for ids in tiny.Letters()(texts)["input_ids"]:
        with torch.no_grad():
            output = model(torch.tensor([ids]), output_hidden_states=True)
        states = torch.stack(output.hidden_states)[:, 0]
        parts = {"mean": states, "last": states[:, -1:], "after_first": states[:, 1:]}
        found.append((parts[pooling] if parts[pooling].shape[1] else states).mean(1))
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["mean", "last", "after_first"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_equal_to_hidden_states(name: str, pooling: Any) -> None:
    model = tiny.build(name)
    ours = pooled(model, pooling=pooling)
    assert ours.shape == (len(tiny.TEXTS), activations.n_layers(model), tiny.WIDTH)
    reference = one_by_one(model, tiny.TEXTS, pooling)
    torch.testing.assert_close(ours, reference, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("budget", [1, 16, 64, 100_000])
def test_batch_size_and_order(budget: int) -> None:
    model = tiny.build("llama")
    reference = pooled(model)
    close = {"atol": TOLERANCE, "rtol": TOLERANCE}
    torch.testing.assert_close(pooled(model, tokens_per_batch=budget), reference, **close)
    backwards = pooled(model, tiny.TEXTS[::-1], tokens_per_batch=budget).flip(0)
    torch.testing.assert_close(backwards, reference, **close)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_token(side: str) -> None:
    model = tiny.build("llama")
    model.resize_token_embeddings(512)
    tokenizer = scripted.byte_tokenizer()
    reference = pooled(model, tokenizer=tokenizer)
    tokenizer.padding_side = side
    torch.testing.assert_close(pooled(model, tokenizer=tokenizer), reference, atol=0, rtol=0)
    tokenizer.pad_token = None
    torch.testing.assert_close(pooled(model, tokenizer=tokenizer), reference, atol=0, rtol=0)


def test_token_zero_is_read() -> None:
    """ "a" is token 0 of the letters: a mask made of ids would drop it."""
    model = tiny.build("llama")
    texts = ["aaa", "baa", "a", "abababab"]
    torch.testing.assert_close(
        pooled(model, texts), one_by_one(model, texts), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_only_the_chosen_layers_and_tokens() -> None:
    model = tiny.build("llama")
    every = pooled(model)
    assert torch.equal(pooled(model, layers=[3, 1]), every[:, [3, 1]])
    cut = pooled(model, ["abcdef"], max_tokens=4)
    torch.testing.assert_close(cut, pooled(model, ["abcd"], max_tokens=4), atol=0, rtol=0)


def test_nothing_runs_behind_the_last_layer_that_is_wanted() -> None:
    model = tiny.build("llama")
    ran: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    for layers, blocks in (([1], {0}), ([2, 0], {0, 1}), ([3], {0, 1, 2})):
        ran.clear()
        pooled(model, layers=layers)
        assert set(ran) == blocks


def test_leaves_the_model_as_it_was() -> None:
    model = tiny.build("llama").train()
    before = tiny.state(model)
    states = pooled(model)
    assert model.training and not states.is_inference() and states.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(block._forward_pre_hooks for block in model.model.layers)


def test_nothing_runs_behind_the_last_module_where_only_it_is_wanted() -> None:
    model = tiny.build("llama")
    first, second, third = model.model.layers
    for to_the_end in (True, False):
        seen: list[str] = []
        ran: list[bool] = []
        with third.register_forward_hook(lambda *_, ran=ran: ran.append(True)):
            read = activations.read_inputs(
                model,
                tiny.Letters(),
                tiny.TEXTS,
                {"first": first, "second": second},
                lambda name, *_, seen=seen: seen.append(name),
                tokens_per_batch=8,
                to_the_end=to_the_end,
            )
        assert read == sum(map(len, tiny.TEXTS))
        assert len(seen) > 4 and seen[::2] == ["first"] * (len(seen) // 2)
        assert bool(ran) == to_the_end


def test_half_precision_pools_in_float32() -> None:
    model = tiny.build("llama", torch.bfloat16)
    texts = ["abcdefghij" * 9]
    torch.testing.assert_close(pooled(model, texts), one_by_one_float(model, texts))


def one_by_one_float(model: Any, texts: list[str]) -> torch.Tensor:
    ids = torch.tensor(tiny.Letters()(texts)["input_ids"])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return torch.stack(states, 1).float().mean(2)


def test_batches_hold_to_the_budget() -> None:
    lengths = torch.randint(1, 100, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = list(activations.batches(lengths, 400))
    assert sorted(index for group in groups for index in group) == list(range(500))
    assert all(len(group) * max(lengths[i] for i in group) <= 400 for group in groups)
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    assert padded <= 1.1 * sum(lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "no texts"),
        ({"texts": ["ab", ""]}, "text 1 has no tokens"),
        ({"layers": [4]}, "layer 4 does not exist"),
        ({"layers": [-1]}, "numbered 0 to 3"),
        ({"max_tokens": 129}, "context holds 128"),
    ],
)
def test_what_cannot_be_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pooled(tiny.build("llama"), **options)


def test_states_that_are_not_finite() -> None:
    model = tiny.build("llama")
    model.model.layers[1].mlp.gate_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        pooled(model)


class Calls:
    """Counts how often a model is run."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.base_model.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


def cached(cache: Path, model: Any, texts: list[str] = tiny.TEXTS, **options: Any) -> torch.Tensor:
    return activations.cached_states(cache, model, tiny.Letters(), texts, progress=False, **options)


def test_cache_hit_runs_no_model(tmp_path: Path) -> None:
    model = tiny.build("llama")
    first = cached(tmp_path, model)
    calls = Calls(model)
    assert torch.equal(cached(tmp_path, model), first) and calls.count == 0
    for change in ({"pooling": "last"}, {"texts": tiny.TEXTS[:3]}, {"max_tokens": 3}):
        before = calls.count
        cached(tmp_path, model, **change)
        assert calls.count > before


def test_edited_model_misses_the_cache(tmp_path: Path) -> None:
    model = tiny.build("llama")
    first = cached(tmp_path, model)
    model.model.layers[0].mlp.gate_proj.weight.data[3] += 0.5
    second = cached(tmp_path, model)
    assert not torch.equal(first, second)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"not a tensor file", None])
def test_damaged_cache_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    model = tiny.build("llama")
    first = cached(tmp_path, model)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert torch.equal(cached(tmp_path, model), first)
    assert path.read_bytes() == whole

"""Fingerprints: what leaves the function alone leaves them at 100, other models are near 0."""

import copy
from typing import Any

import architectures
import numpy as np
import pytest
import torch

from surgery_lib.diagnostics import attacks, image
from surgery_lib.diagnostics import fingerprint as fp
from surgery_lib.errors import UserError
from surgery_lib.surgery import Surgery, region

TOKENS = list(range(3, 100))
GATED = ["llama", "llama-biased", "mistral", "qwen2", "qwen3", "gemma", "mixtral", "qwen3_moe"]


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(40).view(2, 20) + 3
    with torch.no_grad():
        return model(input_ids=ids).logits


def attacked(model: Any, name: str) -> Any:
    other = copy.deepcopy(model)
    attacks.ATTACKS[name][0](other, torch.Generator().manual_seed(1))
    return other


@pytest.mark.parametrize("name", [n for n, (_, same) in attacks.ATTACKS.items() if same])
@pytest.mark.parametrize("architecture", GATED)
def test_what_keeps_the_function_keeps_the_fingerprint(architecture: str, name: str) -> None:
    model = architectures.build(architecture)
    other = attacked(model, name)
    assert torch.allclose(logits(model), logits(other), atol=2e-3, rtol=1e-3)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert fp.ics(fp.read(model, TOKENS), fp.read(other, TOKENS)) == pytest.approx(100, abs=1e-3)


def test_without_gains_folding_them_moves_the_fingerprint() -> None:
    model = architectures.build("llama")
    other = attacked(model, "gains folded")
    plain = [fp.read(one, TOKENS, gained=False) for one in (model, other)]
    assert fp.ics(*plain) < 95


@pytest.mark.parametrize("architecture", ["llama", "llama-biased", "mixtral"])
def test_itself_and_an_unrelated_model(architecture: str) -> None:
    model = architectures.build(architecture)
    own = fp.read(model, TOKENS)
    assert fp.ics(own, own) == pytest.approx(100, abs=1e-6)
    unrelated = fp.read(architectures.build(architecture, seed=7), TOKENS)
    assert abs(fp.ics(own, unrelated)) < 8
    assert fp.pcs(model, model) == (pytest.approx(100), [])


def test_terms_are_those_of_the_paper_written_out() -> None:
    model = architectures.build("llama")
    own = fp.read(model, TOKENS)
    other = fp.read(architectures.build("llama", seed=3), TOKENS)
    written = [terms(one) for one in (model, architectures.build("llama", seed=3))]
    for kind, a, b in zip(fp.KINDS, *written, strict=True):
        expected = np.corrcoef(a.flatten(), b.flatten())[0, 1]
        assert fp.correlation(own, other, (1, kind)) == pytest.approx(expected, abs=1e-6)
        mean, norm = own.moments((1, kind))
        assert mean == pytest.approx(float(a.mean()), rel=1e-4, abs=1e-6)
        assert norm == pytest.approx(float((a - a.mean()).norm()), rel=1e-5)


def terms(model: Any) -> list[torch.Tensor]:
    """M_a, M_b and M_f of block 1 with four query heads on two of keys, head by head."""
    block = model.model.layers[1]
    x = model.get_input_embeddings().weight[TOKENS].detach().double()
    a, m = block.self_attn, block.mlp
    before = x * block.input_layernorm.weight.detach().double()
    inside = x * block.post_attention_layernorm.weight.detach().double()
    q, k, v, o = (getattr(a, f"{n}_proj").weight.detach().double() for n in ("q", "k", "v", "o"))
    first = second = torch.zeros(len(x), len(x), dtype=torch.float64)
    for head in range(4):
        own, shared = (slice(8 * h, 8 * h + 8) for h in (head, head // 2))
        first = first + before @ q[own].T @ k[shared] @ before.T
        second = second + before @ v[shared].T @ o[:, own].T @ x.T
    g, u, d = (getattr(m, f"{n}_proj").weight.detach().double() for n in ("gate", "up", "down"))
    gain = block.post_attention_layernorm.weight.detach().double()
    third = x @ ((g * gain) * (u * gain)).T @ d.T @ x.T
    assert inside.shape == x.shape
    return [first, second, third]


def test_tied_embeddings_count_once_and_shapes_that_differ_are_named() -> None:
    tied = architectures.build("llama-biased")
    assert tied.config.tie_word_embeddings
    assert fp.pcs(tied, copy.deepcopy(tied)) == (pytest.approx(100), [])
    value, skipped = fp.pcs(tied, architectures.build("llama"))
    assert "lm_head.weight" in skipped and abs(value) < 20


def test_the_map_of_the_touch_finds_the_blocks_that_were_edited() -> None:
    model = architectures.build("llama")
    base = copy.deepcopy(model)
    direction = torch.randn(architectures.WIDTH, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([50, 60, 70])  # block 1 of three, 48 rows each
    surgery = Surgery.build(model, rows, direction, 2.0)
    with surgery.applied(model):
        terms = fp.by_term(fp.read(base, TOKENS), fp.read(model, TOKENS))
        moved = fp.moved(base, model)
    assert region.per_block(model, rows) == [0, 3, 0]
    touched = {key for key, value in terms.items() if value < 1 - 1e-9}
    assert touched == {(1, "mlp")}
    assert [value > 0 for value in moved["gate"]] == [False, True, False]
    assert not any(any(moved[name]) for name in ("up", "down", "q", "k", "v", "o"))


def test_an_architecture_that_fuses_attention_is_refused_by_name_and_its_mlp_is_read() -> None:
    model = architectures.build("phi3")
    with pytest.raises(UserError, match="q matrix"):
        fp.read(model, TOKENS)
    own = fp.read(model, TOKENS, kinds=["mlp"])
    other = attacked(model, "units permuted")
    assert fp.ics(own, fp.read(other, TOKENS, kinds=["mlp"])) == pytest.approx(100, abs=1e-3)


def test_depths_and_token_counts_that_differ() -> None:
    model = architectures.build("llama")
    with pytest.raises(UserError, match="tokens"):
        fp.ics(fp.read(model, TOKENS), fp.read(model, TOKENS[:50]))
    with pytest.raises(UserError, match="two tokens"):
        fp.read(model, [4])


def test_rare_tokens_are_the_rarest_that_occur() -> None:
    found = fp.rare_tokens(architectures.Letters(), ["aaaabbbccd"], 2)
    assert found == [2, 3]  # c twice, d once; what never occurs is not there


def test_pooling_is_the_mean_of_equal_parts_of_the_standardised_terms() -> None:
    model = architectures.build("llama")
    own = fp.read(model, TOKENS[:64])
    expected = []
    for block in (1, 2):
        for kind in fp.KINDS:
            term = own.basis @ own.terms[block, kind].double() @ own.basis.T
            expected.append(((term - term.mean()) / term.std(correction=0)).flatten())
    parts = torch.cat(expected).view(128, -1).mean(1)  # 3 rows of 64 entries each
    assert torch.allclose(image.pooled(own, size=128), parts, atol=1e-6)


def test_images_are_the_same_for_the_same_and_near_for_the_near() -> None:
    vector = image.standardised(torch.randn(512, generator=torch.Generator().manual_seed(0)))
    noise = torch.randn(512, generator=torch.Generator().manual_seed(1)).double()
    pictures = [image.draw(vector + step * noise) for step in (0.0, 0.01, 0.1, 1.0)]
    assert np.array_equal(pictures[0], image.draw(vector))
    steps = [image.distance(pictures[0], picture) for picture in pictures]
    assert steps == sorted(steps) and steps[1] < 0.02 < steps[3]
    assert pictures[0].shape == (96, 96, 3) and pictures[0].std() > 0.05

"""The paper's rule is a brute-force ranking; the effect rule is a derivative."""

from pathlib import Path
from typing import Any

import architectures as tiny
import pytest
import torch
from torch import Tensor

from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import probe, region
from surgery_lib.surgery.controls import random_direction
from surgery_lib.surgery.effects import effect_scores


def brute_force(model: Any, direction: Tensor) -> list[float]:
    """Row after row in float64."""
    return [
        float(torch.cosine_similarity(row.double(), direction.double(), dim=0))
        for rows in layout.weight_rows(model)
        for row in rows.weight
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_cosines_of_every_architecture(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype)
    direction = torch.randn(tiny.WIDTH)
    scores = region.cosine_scores(model, direction)
    assert scores.dtype == torch.float32
    expected = torch.tensor(brute_force(model, direction))
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)


def test_chunks_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(101, 8).bfloat16(), torch.randn(5, 8), torch.randn(8, 30).half().T]
    whole = region.row_cosines(weights, torch.arange(8.0))
    monkeypatch.setattr(region, "CHUNK_NUMBERS", 56)
    torch.testing.assert_close(region.row_cosines(weights, torch.arange(8.0)), whole)
    assert len(whole) == 136


@pytest.mark.parametrize(("rule", "sign"), [("opposed", 1), ("aligned", -1)])
@pytest.mark.parametrize("k", [1, 7, 144])
def test_rule_equals_sorting(rule: Any, sign: int, k: int) -> None:
    scores = torch.randn(144).mul(3).round()  # many ties: the lower index comes first
    order = sorted(range(144), key=lambda row: (sign * float(scores[row]), row))
    chosen = region.select(scores, k, select=rule)
    assert chosen.tolist() == sorted(order[:k]) and chosen.dtype == torch.int64


def test_selection_with_the_authors_probe(mirror: Path) -> None:
    """Four blocks of the paper's size in bfloat16 against a float32 ranking of whole matrices.

    Ties go to the lower index in both; rows whose float32 scores differ by less than 1e-7 at the
    cut are counted as ties too, since sums in another order round differently.
    """
    direction = probe.import_authors(
        mirror / "probes/model-surgery-mistral-7b.pt", layer=32
    ).direction
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(11_008, 4_096, generator=generator).mul_(0.02)
    weights = [noise.roll(shift, dims=1).bfloat16() for shift in (0, 5, 11, 17)]
    k = 2_048  # 4.65 % of the rows
    chosen = region.select(region.row_cosines(weights, direction), k)
    reference = torch.cat(
        [
            torch.nn.functional.normalize(weight.float()) @ (direction / direction.norm())
            for weight in weights
        ]
    )
    cut = reference.sort().values[k - 1]
    surely = (reference < cut - 1e-7).nonzero().flatten()
    perhaps = (reference <= cut + 1e-7).nonzero().flatten()
    assert set(surely.tolist()) <= set(chosen.tolist()) <= set(perhaps.tolist())
    assert len(chosen) == k and len(perhaps) - len(surely) <= 4


def test_k_as_count_and_fraction() -> None:
    assert region.row_count(16_384, 352_256) == 16_384
    assert region.row_count(16_384 / 352_256, 352_256) == 16_384
    assert region.row_count(1.0, 10) == 10 and region.row_count(1, 10) == 1
    for k in (0, -3, 11, 1.5, 0.0, -0.1, 0.01, float("nan")):
        with pytest.raises(UserError, match="K = "):
            region.row_count(k, 10)


def test_controls() -> None:
    scores = torch.randn(200)
    assert torch.equal(region.select(scores, 0.1, select="all"), torch.arange(200))
    first = region.select(scores, 40, select="random", seed=1)
    assert torch.equal(first, region.select(scores, 40, select="random", seed=1))
    assert not torch.equal(first, region.select(scores, 40, select="random", seed=2))
    assert len(first.unique()) == 40
    with pytest.raises(UserError, match="is unknown; choose one of all, opposed"):
        region.select(scores, 40, select="nearest")  # type: ignore[arg-type]


def test_window_of_the_depth() -> None:
    model = tiny.build("llama")
    window = region.depth_window(model, 1 / 3, 2 / 3)
    assert window.nonzero().flatten().tolist() == list(range(tiny.UNITS, 2 * tiny.UNITS))
    scores = torch.randn(3 * tiny.UNITS)
    chosen = region.select(scores, 20, among=window)
    inside = scores[tiny.UNITS : 2 * tiny.UNITS].argsort(stable=True)[:20].sort().values
    assert torch.equal(chosen, inside + tiny.UNITS)
    with pytest.raises(UserError, match="there are 48; lower K"):
        region.select(scores, 0.5, among=window)


def test_random_direction_has_the_norm() -> None:
    like = torch.randn(64) * 3
    noise = random_direction(like, 1)
    torch.testing.assert_close(noise.norm(), like.norm())
    assert torch.equal(noise, random_direction(like, 1))
    assert not torch.equal(noise, random_direction(like, 2))


def test_mean_row_norm() -> None:
    model = tiny.build("qwen3_moe", torch.bfloat16)
    norms = torch.cat([rows.weight.double().norm(dim=1) for rows in layout.weight_rows(model)])
    assert region.mean_row_norm(model) == pytest.approx(float(norms.mean()), rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model = tiny.build("llama", torch.bfloat16)
    model.model.layers[2].mlp.gate_proj.weight.data[5, 5] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        region.cosine_scores(model, torch.randn(tiny.WIDTH))
    with pytest.raises(UserError, match="NaN or infinite"):
        region.mean_row_norm(model)
    with pytest.raises(UserError, match="NaN or infinite"):
        effects(model, torch.randn(1, tiny.WIDTH))


def test_direction_of_another_width() -> None:
    with pytest.raises(UserError, match="the direction is 8 wide"):
        region.cosine_scores(tiny.build("llama"), torch.randn(8))
    with pytest.raises(UserError, match="the direction is 8 wide"):
        effects(tiny.build("llama"), torch.randn(1, 8))


def effects(model: Any, directions: Tensor, texts: list[str] = tiny.TEXTS) -> Tensor:
    return effect_scores(model, tiny.Letters(), texts, directions, progress=False)


def mlp_output_along(model: Any, texts: list[str], unit: Tensor, block: int) -> float:
    """Mean over all tokens of what a block's MLP writes, along a direction."""
    written: list[Tensor] = []
    handle = layout.blocks(model)[block].mlp.register_forward_hook(
        lambda module, args, output: written.append(output[0] @ unit)
    )
    for ids in tiny.Letters()(texts)["input_ids"]:
        with torch.no_grad():
            model(torch.tensor([ids]))
    handle.remove()
    return float(torch.cat(written).mean())


@pytest.mark.parametrize("name", ["llama", "llama-biased", "gemma", "phi3", "gpt2", "gpt_neox"])
def test_effect_is_the_derivative(name: str) -> None:
    """Central differences in float64 of a row moved along the direction, three rows a block."""
    model = tiny.build(name).double()
    texts = ["surgery", "of", "rows"]
    direction = torch.randn(tiny.WIDTH, dtype=torch.float64)
    unit = direction / direction.norm()
    scores = effects(model, torch.stack([torch.randn(tiny.WIDTH), direction.float() * 7]), texts)
    offset, step = 0, 1e-4
    for rows in layout.weight_rows(model):
        for row in (0, 3, len(rows.weight) - 1):
            values = []
            for sign in (1, -1):
                before = rows.weight[row].clone()
                rows.weight[row] += sign * step * unit
                values.append(mlp_output_along(model, texts, unit, rows.block))
                rows.weight[row] = before
            numeric = (values[0] - values[1]) / (2 * step)
            assert float(scores[1, offset + row]) == pytest.approx(numeric, rel=1e-3, abs=1e-6)
        offset += len(rows.weight)
    assert scores.shape == (2, offset)


def test_effect_does_not_depend_on_batches() -> None:
    model = tiny.build("llama")
    directions = torch.randn(2, tiny.WIDTH)
    alone = sum(len(text) * effects(model, directions, [text]) for text in tiny.TEXTS) / sum(
        map(len, tiny.TEXTS)
    )
    torch.testing.assert_close(effects(model, directions), alone, atol=1e-6, rtol=1e-4)


def test_effect_refuses_and_leaves_no_hook() -> None:
    mixture = tiny.build("qwen3_moe")
    with pytest.raises(UserError, match="use the cosine rule for experts"):
        effects(mixture, torch.randn(1, tiny.WIDTH))
    model = tiny.build("llama").train()
    with pytest.raises(UserError, match="has no tokens"):
        effects(model, torch.randn(1, tiny.WIDTH), ["a", ""])
    effects(model, torch.randn(1, tiny.WIDTH))
    assert model.training
    for module in [*mixture.modules(), *model.modules()]:
        assert not module._forward_pre_hooks

"""The edit: what was selected, along the direction, and nothing else; undone bit for bit."""

from pathlib import Path
from typing import Any

import architectures as tiny
import pytest
import torch
from torch import Tensor

from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import Surgery, region

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def plan(model: Any, strength: float = 1.0, k: int = 20, seed: int = 0, **options: Any) -> Surgery:
    """An edit of rows over all matrices."""
    generator = torch.Generator().manual_seed(seed)
    matrix = options.get("matrix", "gate")
    rows = torch.randperm(layout.total_rows(model, matrix), generator=generator)[:k]
    direction = torch.randn(tiny.WIDTH, generator=generator)
    return Surgery.build(model, rows, direction, strength, **options)


def changed(model: Any, before: dict[str, Tensor]) -> list[str]:
    return [n for n, now in model.state_dict().items() if not tiny.same_bits(now, before[n])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_undo_restores_every_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype)
    for rows in layout.weight_rows(model):
        rows.weight[::3, ::2] = -0.0
    before = tiny.state(model)
    surgery = plan(model, 3.7)
    surgery.apply(model)
    assert changed(model, before)
    surgery.undo(model)
    assert not changed(model, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "gpt2"])
def test_strength_zero_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype)
    for rows in layout.weight_rows(model):
        rows.weight[:, ::2] = -0.0
        rows.weight[:, 1::4] = 0.0
    before = tiny.state(model)
    with plan(model, 0.0).applied(model):
        assert not changed(model, before)
    assert not changed(model, before)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_exactly_the_selected_rows_move_along_the_direction(name: str) -> None:
    model = tiny.build(name)
    before = tiny.state(model)
    rows_before = torch.cat([rows.weight.clone() for rows in layout.weight_rows(model)])
    surgery = plan(model, 2.0)
    surgery.apply(model)
    moved = torch.cat([rows.weight for rows in layout.weight_rows(model)]) - rows_before
    assert moved.any(1).nonzero().flatten().tolist() == surgery.rows.tolist()
    assert (surgery.rows[1:] > surgery.rows[:-1]).all()
    delta = moved[surgery.rows]
    expected = 2.0 * region_norm(rows_before) * surgery.direction
    torch.testing.assert_close(delta, expected.expand_as(delta), atol=1e-6, rtol=1e-5)
    parallel = torch.cosine_similarity(delta, surgery.direction[None])
    torch.testing.assert_close(parallel, torch.ones(len(delta)))
    assert float(surgery.direction.norm()) == pytest.approx(1, abs=1e-6)
    # Nothing but gate rows: as many entries of the whole model differ as the rows have.
    differing = sum(
        int((now != before[key]).sum())
        for key, now in model.state_dict().items()
        if key in dict(model.named_parameters())
    )
    assert differing == int((moved != 0).sum())
    assert set(changed(model, before)) <= {r.parameter for r in layout.weight_rows(model)}


def region_norm(rows: Tensor) -> float:
    return float(rows.double().norm(dim=1).mean())


def test_up_half_and_other_experts_are_untouched() -> None:
    phi, mixture = tiny.build("phi3"), tiny.build("mixtral")
    fused = phi.model.layers[1].mlp.gate_up_proj.weight
    stacked = mixture.model.layers[1].mlp.experts.gate_up_proj
    phi_before, mixture_before = fused.detach().clone(), stacked.detach().clone()
    everywhere = torch.arange(tiny.UNITS, 2 * tiny.UNITS)
    Surgery.build(phi, everywhere, torch.ones(tiny.WIDTH), 1.0).apply(phi)
    assert tiny.same_bits(fused[tiny.UNITS :], phi_before[tiny.UNITS :])
    assert not torch.isclose(fused[: tiny.UNITS], phi_before[: tiny.UNITS], atol=1e-3).any()
    third = torch.arange(tiny.UNITS) + (tiny.EXPERTS + 2) * tiny.UNITS  # block 1, expert 2
    Surgery.build(mixture, third, torch.ones(tiny.WIDTH), 1.0).apply(mixture)
    same = torch.tensor([0, 1, 3])
    assert tiny.same_bits(stacked[same], mixture_before[same])
    assert tiny.same_bits(stacked[2, tiny.UNITS :], mixture_before[2, tiny.UNITS :])
    assert not torch.isclose(stacked[2, : tiny.UNITS], mixture_before[2, : tiny.UNITS]).any()


@pytest.mark.parametrize("matrix", ["up", "down", "q", "o"])
def test_other_matrices(matrix: str) -> None:
    model = tiny.build("llama")
    before = tiny.state(model)
    with plan(model, matrix=matrix).applied(model):
        names = changed(model, before)
        assert names and all(f"{matrix}_proj" in name for name in names)
    assert not changed(model, before)


def test_negative_strength_is_the_opposite_step() -> None:
    model = tiny.build("llama")
    before = torch.cat([rows.weight.clone() for rows in layout.weight_rows(model)])
    steps = []
    for strength in (1.5, -1.5):
        with plan(model, strength).applied(model):
            steps.append(torch.cat([r.weight for r in layout.weight_rows(model)]) - before)
    assert steps[0].abs().max() > 0.1
    torch.testing.assert_close(steps[0], -steps[1], atol=1e-6, rtol=1e-5)


def test_absolute_unit_is_the_papers_strength_times_direction() -> None:
    model = tiny.build("llama")
    direction = torch.randn(tiny.WIDTH) * 2.1
    before = layout.weight_rows(model)[0].weight[4].clone()
    Surgery.build(model, torch.tensor([4]), direction, 0.5, unit="absolute").apply(model)
    moved = layout.weight_rows(model)[0].weight[4] - before
    torch.testing.assert_close(moved, 0.5 * direction, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    model = tiny.build("llama", dtype)
    surgery = plan(model, 0.3)
    rows = torch.cat([rows.weight for rows in layout.weight_rows(model)])[surgery.rows]
    exact = rows.float() + surgery.coefficients[:, None] * surgery.direction
    surgery.apply(model)
    after = torch.cat([rows.weight for rows in layout.weight_rows(model)])[surgery.rows]
    assert tiny.same_bits(after, exact.to(dtype))


def test_restored_after_an_exception() -> None:
    model = tiny.build("llama")
    before = tiny.state(model)
    surgery = plan(model)
    with pytest.raises(KeyError), surgery.applied(model):
        raise KeyError("inside")
    assert not changed(model, before)
    with surgery.applied(model):  # and can be applied again
        assert changed(model, before)


def test_edited_model_behaves_differently_and_back() -> None:
    model = tiny.build("llama")
    ids = torch.randint(0, tiny.VOCABULARY, (2, 9))
    with torch.no_grad():
        first = model(ids).logits
        with plan(model, 2.0).applied(model):
            assert not torch.allclose(model(ids).logits, first)
        assert torch.equal(model(ids).logits, first)


def test_second_application_is_refused() -> None:
    model = tiny.build("llama")
    before = tiny.state(model)
    surgery = plan(model)
    surgery.apply(model)
    once = tiny.state(model)
    with pytest.raises(UserError, match="already applied"):
        surgery.apply(model)
    assert not changed(model, once)
    surgery.apply(model, force=True)
    assert changed(model, once)
    surgery.undo(model)
    assert not changed(model, once)
    surgery.undo(model)
    assert not changed(model, before)
    with pytest.raises(UserError, match="nothing to undo"):
        surgery.undo(model)


def test_loaded_copy_is_refused_a_second_time(tmp_path: Path) -> None:
    model = tiny.build("llama")
    surgery = plan(model)
    surgery.save(tmp_path)
    surgery.apply(model)
    with pytest.raises(UserError, match="already edited"):
        Surgery.load(tmp_path).apply(model)


def test_other_model_is_refused() -> None:
    surgery = plan(tiny.build("llama"))
    other = tiny.build("llama", seed=1)
    before = tiny.state(other)
    with pytest.raises(UserError, match="made for another model"):
        surgery.apply(other)
    assert not changed(other, before)
    with surgery.applied(other, force=True):
        assert changed(other, before)
    assert not changed(other, before)


def test_two_overlapping_surgeries_come_off_in_order() -> None:
    model = tiny.build("llama")
    before = tiny.state(model)
    first = plan(model, k=100)
    first.apply(model)
    between = tiny.state(model)
    second = plan(model, k=100, seed=1)
    assert set(first.rows.tolist()) & set(second.rows.tolist())
    second.apply(model)
    with pytest.raises(UserError, match="undo the later ones first"):
        first.undo(model)
    second.undo(model)
    assert not changed(model, between)
    first.undo(model)
    assert not changed(model, before)


def test_save_and_load(tmp_path: Path) -> None:
    model = tiny.build("llama")
    surgery = plan(model, 1.25, about={"behaviour": "toxicity", "k": 20})
    surgery.save(tmp_path)
    loaded = Surgery.load(tmp_path)
    for name in ("rows", "coefficients", "direction"):
        assert tiny.same_bits(getattr(surgery, name), getattr(loaded, name))
    for name in ("strength", "unit", "fingerprint", "matrix", "about"):
        assert getattr(surgery, name) == getattr(loaded, name)
    with surgery.applied(model):
        edited = tiny.state(model)
    with loaded.applied(model):
        assert not changed(model, edited)


def test_patch_is_kilobytes(tmp_path: Path) -> None:
    """The paper's 16,384 rows of a width of 4,096: an index and a coefficient each."""
    size = 16_384
    rows, direction = torch.arange(size), torch.randn(4_096)
    Surgery(rows, torch.ones(size), direction, 1.0, "absolute", "0" * 16).save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 160_000
    Surgery(rows[:50], torch.ones(50), direction[:256], 1.0, "absolute", "0").save(tmp_path / "s")
    assert sum(path.stat().st_size for path in (tmp_path / "s").iterdir()) < 4_000


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_truncated_patch(tmp_path: Path, keep: int) -> None:
    plan(tiny.build("llama")).save(tmp_path)
    path = tmp_path / "surgery.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        Surgery.load(tmp_path)


def test_no_patch_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Surgery.load(tmp_path)


@pytest.mark.parametrize(
    ("rows", "direction", "strength", "message"),
    [
        ([], torch.ones(tiny.WIDTH), 1.0, "must be some of the 144"),
        ([144], torch.ones(tiny.WIDTH), 1.0, "must be some of the 144"),
        ([-1], torch.ones(tiny.WIDTH), 1.0, "must be some of the 144"),
        ([3, 3], torch.ones(tiny.WIDTH), 1.0, "selected twice"),
        ([3], torch.ones(8), 1.0, "32 wide"),
        ([3], torch.zeros(tiny.WIDTH), 1.0, "zero or not finite"),
        ([3], torch.full((tiny.WIDTH,), float("nan")), 1.0, "zero or not finite"),
        ([3], torch.ones(tiny.WIDTH), float("inf"), "strength inf is not finite"),
    ],
)
def test_what_cannot_be_planned(
    rows: list[int], direction: Tensor, strength: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Surgery.build(tiny.build("llama"), torch.tensor(rows), direction, strength)


def test_weights_that_are_not_finite() -> None:
    model = tiny.build("llama")
    model.model.layers[0].mlp.gate_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        plan(model)


def test_the_papers_rule_end_to_end() -> None:
    """Select what opposes the direction, add it: those rows' cosines rise, no other changes."""
    model = tiny.build("qwen2", torch.bfloat16)
    direction = torch.randn(tiny.WIDTH)
    before = region.cosine_scores(model, direction)
    rows = region.select(before, 0.1)
    with Surgery.build(model, rows, direction, 2.0).applied(model):
        after = region.cosine_scores(model, direction)
    assert (after[rows] > 0.5).all() and (before[rows] < 0).all()
    others = torch.ones(len(before), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(after[others], before[others])

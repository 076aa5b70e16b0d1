"""A patch with a direction for every block: memory, files and adapter agree, and undo is exact."""

from typing import Any

import pytest
import torch
import transformers as hf
from architectures import CONFIGS, WIDTH, build, same_bits, state
from peft import PeftModel

from surgery_lib import checkpoint
from surgery_lib.checkpoint import adapter
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.selection import operations
from surgery_lib.surgery import Surgery, region

BLOCKS = 3


def directions() -> torch.Tensor:
    return torch.randn(BLOCKS, WIDTH, generator=torch.Generator().manual_seed(5))


def plan(model: Any, matrix: str = "gate") -> Surgery:
    rows = region.select(region.cosine_scores(model, directions(), matrix), 0.3, select="random")
    return Surgery.build(model, rows, directions(), 1.5, matrix=matrix)


@pytest.mark.parametrize("matrix", ["gate", "down"])
@pytest.mark.parametrize("name", CONFIGS)
def test_memory_files_and_adapter_agree_to_the_bit(tmp_path: Any, name: str, matrix: str) -> None:
    source = tmp_path / "source"
    build(name).save_pretrained(source)
    model = hf.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    before = state(model)
    edit = plan(model, matrix)
    checkpoint.operate(source, edit, tmp_path / "copy", progress=False)
    adapter.export_adapter(edit, model, tmp_path / "adapter")
    edit.apply(model)
    edited = state(model)
    disk = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype="auto").state_dict()
    base = hf.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    assert all(same_bits(edited[key], disk[key]) for key in edited)
    assert all(torch.equal(edited[key], merged[key]) for key in edited)
    edit.undo(model)
    after = model.state_dict()
    assert all(same_bits(before[key], after[key]) for key in before)
    assert any(not torch.equal(before[key], edited[key]) for key in before)


@pytest.mark.parametrize("name", ["llama", "mixtral", "phi3", "gpt2"])
def test_each_row_moves_along_the_direction_of_its_block(name: str) -> None:
    model = build(name)
    edit = plan(model)
    old = torch.cat([rows.weight.clone() for rows in layout.weight_rows(model)])
    unit = directions() / directions().norm(dim=1, keepdim=True)
    size = region.mean_row_norm(model) * 1.5
    with edit.applied(model):
        new = torch.cat([rows.weight for rows in layout.weight_rows(model)])
        step = (new - old)[edit.rows]
    expected = size * unit[layout.row_blocks(model)[edit.rows]]
    torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-4)


def test_a_saved_patch_comes_back_and_says_its_format(tmp_path: Any) -> None:
    model = build("llama")
    edit = plan(model)
    edit.save(tmp_path / "many")
    again = Surgery.load(tmp_path / "many")
    assert torch.equal(again.direction, edit.direction) and again.direction.shape[0] == BLOCKS
    assert b"model-surgery/2" in (tmp_path / "many" / "surgery.safetensors").read_bytes()
    Surgery.build(model, edit.rows, directions()[0], 1.0).save(tmp_path / "one")
    assert b"model-surgery/1" in (tmp_path / "one" / "surgery.safetensors").read_bytes()
    assert Surgery.load(tmp_path / "one").direction.dim() == 1


def test_the_same_direction_in_every_block_is_one_direction() -> None:
    one, many = build("llama"), build("llama")
    vector = directions()[0]
    rows = torch.arange(0, 100, 3)
    Surgery.build(one, rows, vector, 2.0).apply(one)
    Surgery.build(many, rows, vector.expand(BLOCKS, -1).clone(), 2.0).apply(many)
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, many.state_dict()[key])


def test_wrong_numbers_of_directions_are_refused() -> None:
    model = build("llama")
    with pytest.raises(UserError, match="direction has shape"):
        Surgery.build(model, torch.arange(3), torch.ones(BLOCKS + 1, WIDTH), 1.0)
    hole = directions()
    hole[1] = 0
    with pytest.raises(UserError, match="zero or not finite"):
        Surgery.build(model, torch.arange(3), hole, 1.0)


def test_the_inverse_moves_the_same_rows_the_other_way() -> None:
    model = build("llama")
    edit = plan(model)
    turned = operations.inverse(model, edit)
    before = [entry.weight.clone() for entry in layout.weight_rows(model)]
    with edit.applied(model):
        there = [entry.weight.clone() for entry in layout.weight_rows(model)]
    with turned.applied(model):
        back = [entry.weight.clone() for entry in layout.weight_rows(model)]
    assert any(not torch.equal(a, b) for a, b in zip(before, there, strict=True))
    for start, one, other in zip(before, there, back, strict=True):
        torch.testing.assert_close(one - start, start - other)
    assert turned.about["inverse"] and "inverse" not in edit.about

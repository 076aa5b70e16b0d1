"""A surgery exported as a LoRA adapter does what the surgery does."""

import pytest
import torch
from architectures import CONFIGS, WIDTH, build
from peft import PeftModel

from surgery_lib.checkpoint import adapter
from surgery_lib.errors import UserError
from surgery_lib.surgery import Surgery, region

# peft rounds the step of stacked experts to bfloat16 before it adds it: one unit in the last place
# of a step below 2.
STACKED = 2**-7
IDS = torch.tensor([[5, 17, 3, 99, 42]])


def direction(seed):
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def surgery_on(model, seed=1, k=0.2, matrix="gate"):
    scores = region.cosine_scores(model, direction(seed), matrix)
    return Surgery.build(model, region.select(scores, k), direction(seed), 1.5, matrix=matrix)


def merged(model, folder):
    return PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


def distance(left, right):
    assert left.keys() == right.keys()
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("matrix", ["gate", "down"])
@pytest.mark.parametrize("name", CONFIGS)
def test_merged_it_is_the_edited_model(tmp_path, name, matrix, dtype):
    edited = build(name, dtype)
    edit = surgery_on(edited, matrix=matrix)
    adapter.export_adapter(edit, edited, tmp_path)
    edit.apply(edited)
    rounded_twice = dtype == torch.bfloat16 and "mlp.experts" in str(edited.state_dict().keys())
    found = distance(merged(build(name, dtype), tmp_path), edited.state_dict())
    assert found <= (STACKED if rounded_twice else 0.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_unmerged_it_computes_what_the_edited_model_does(tmp_path, name):
    model = build(name)
    edit = surgery_on(model)
    adapter.export_adapter(edit, model, tmp_path)
    with torch.no_grad():
        before = model(IDS).logits
        with edit.applied(model):
            expected = model(IDS).logits
        found = PeftModel.from_pretrained(build(name), tmp_path)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "mixtral", "qwen3_moe"])
def test_several_surgeries_stack(tmp_path, name):
    model = build(name)
    edits = [surgery_on(model, seed, k) for seed, k in ((1, 0.3), (2, 0.4), (3, 5))]
    adapter.export_adapter(edits, model, tmp_path)
    for edit in edits:
        edit.apply(model, force=True)
    assert distance(merged(build(name), tmp_path), model.state_dict()) < 1e-6


def test_gate_and_down_of_a_dense_model_stack(tmp_path):
    model = build("llama")
    edits = [surgery_on(model), surgery_on(model, 2, matrix="down")]
    adapter.export_adapter(edits, model, tmp_path)
    for edit in edits:
        edit.apply(model, force=True)
    assert distance(merged(build("llama"), tmp_path), model.state_dict()) < 1e-6


def test_only_touched_matrices_are_named(tmp_path):
    model = build("llama")
    edit = Surgery.build(model, torch.tensor([50, 60]), direction(1), 1.0)
    adapter.export_adapter(edit, model, tmp_path)
    found = PeftModel.from_pretrained(model, tmp_path)
    names = [name for name, _ in found.named_parameters() if "lora_A" in name]
    assert names == ["base_model.model.model.layers.1.mlp.gate_proj.lora_A.default.weight"]


def test_a_folder_with_a_config_will_do(tmp_path):
    model = build("qwen3_moe")
    model.config.save_pretrained(tmp_path / "source")
    edit = surgery_on(model)
    one = adapter.export_adapter(edit, model, tmp_path / "one")
    other = adapter.export_adapter(edit, tmp_path / "source", tmp_path / "other")
    name = "adapter_model.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_it_names_its_base(tmp_path):
    model = build("llama")
    adapter.export_adapter(surgery_on(model), model, tmp_path, base="org/name")
    assert '"base_model_name_or_path": "org/name"' in (tmp_path / "adapter_config.json").read_text()


def test_what_cannot_be_exported_is_refused(tmp_path):
    model = build("mixtral")
    both = [surgery_on(model), surgery_on(model, matrix="down")]
    with pytest.raises(UserError, match="an adapter for each matrix"):
        adapter.export_adapter(both, model, tmp_path)
    with pytest.raises(UserError, match="at least one"):
        adapter.export_adapter([], model, tmp_path)
    with pytest.raises(UserError, match=r"config\.json"):
        adapter.export_adapter(both[0], tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match="selected rows must be some of the"):
        adapter.export_adapter(both[0], build("gpt2"), tmp_path)

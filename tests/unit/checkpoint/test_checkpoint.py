"""Surgery on files equals surgery on the model, for every architecture, and is never half done."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from architectures import CONFIGS, WIDTH, build, same_bits, state
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from surgery_lib import checkpoint, files, surgery
from surgery_lib.checkpoint import copying
from surgery_lib.checkpoint.shards import INDEX, Checkpoint, read_header
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import region

KILL = Path(__file__).parent / "kill_checkpoint.py"


@pytest.fixture
def direction():
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def source(tmp_path):
    return saved(build("llama"), tmp_path / "source")


def saved(model, folder, shard="1GB"):
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def load(folder):
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def operated(source, destination, direction, **settings):
    edit = checkpoint.plan(source, direction, 0.1, 2.0, progress=False)
    return checkpoint.operate(source, edit, destination, progress=False, **settings)


def bytes_of(folder):
    return {path.name: files.sha256(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("matrix", ["gate", "down"])
@pytest.mark.parametrize("name", CONFIGS)
def test_files_and_memory_agree_to_the_bit(tmp_path, direction, name, matrix, dtype):
    source = saved(build(name, dtype), tmp_path / "source", shard="40KB")
    model = load(source)
    rows = region.select(region.cosine_scores(model, direction, matrix), 0.2)
    edit = surgery.Surgery.build(model, rows, direction, 1.5, matrix=matrix)
    planned = checkpoint.plan(source, direction, 0.2, 1.5, matrix=matrix, progress=False)
    assert torch.equal(planned.rows, edit.rows)
    assert torch.equal(planned.coefficients, edit.coefficients)
    assert planned.fingerprint == edit.fingerprint
    before = bytes_of(source)
    checkpoint.operate(source, edit, tmp_path / "edited", progress=False)
    assert bytes_of(source) == before
    edit.apply(model)
    expected, found = state(model), state(load(tmp_path / "edited"))
    assert expected.keys() == found.keys()
    assert all(same_bits(tensor, found[key]) for key, tensor in expected.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_files_hold_the_rows_in_the_order_of_memory(tmp_path, name):
    model = build(name)
    source = Checkpoint.open(saved(model, tmp_path / "source"))
    for matrix in ("gate", "down"):
        memory = [(r.block, r.expert, len(r.weight)) for r in layout.weight_rows(model, matrix)]
        assert [(m.block, m.expert, m.rows) for m in source.matrices(matrix)] == memory


def test_fused_experts_on_disk_are_read_too(tmp_path, direction):
    model = build("mixtral")
    model.save_pretrained(tmp_path / "split")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    names = Checkpoint.open(tmp_path / "fused").tensors
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    split, fused = (
        checkpoint.plan(tmp_path / kind, direction, 0.2, 1.0, progress=False)
        for kind in ("split", "fused")
    )
    assert torch.equal(split.rows, fused.rows)
    assert split.fingerprint == fused.fingerprint


def test_only_the_selected_rows_differ_on_disk(source, tmp_path, direction):
    edit = checkpoint.plan(source, direction, 7, 2.0, progress=False)
    checkpoint.operate(source, edit, tmp_path / "edited", progress=False)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (source, tmp_path / "edited")
    )
    changed = sum(
        int((before[name] != after[name]).any(dim=-1).sum())
        for name in before
        if before[name].dim() > 1
    )
    assert changed == 7
    assert all(torch.equal(before[name], after[name]) for name in before if "gate_proj" not in name)


def test_the_size_of_a_piece_changes_nothing(source, tmp_path, direction, monkeypatch):
    for matrix in ("gate", "down"):
        edit = checkpoint.plan(source, direction, 0.3, 1.0, matrix=matrix, progress=False)
        checkpoint.operate(source, edit, tmp_path / f"{matrix}-whole", progress=False)
        with monkeypatch.context() as patch:
            patch.setattr("surgery_lib.checkpoint.edit.PIECE_BYTES", 1 << 17)
            patch.setattr(region, "CHUNK_NUMBERS", 4 * WIDTH)
            cut = checkpoint.plan(source, direction, 0.3, 1.0, matrix=matrix, progress=False)
            checkpoint.operate(source, edit, tmp_path / f"{matrix}-cut", progress=False)
        assert torch.equal(cut.rows, edit.rows)
        assert bytes_of(tmp_path / f"{matrix}-cut") == bytes_of(tmp_path / f"{matrix}-whole")


def test_strength_zero_changes_no_bit(source, tmp_path, direction):
    edit = checkpoint.plan(source, direction, 0.5, 0.0, progress=False)
    checkpoint.operate(source, edit, tmp_path / "edited", progress=False)
    assert files.sha256(source / "model.safetensors") == files.sha256(
        tmp_path / "edited" / "model.safetensors"
    )


def test_what_belongs_to_a_model_comes_along_and_other_weights_do_not(source, tmp_path, direction):
    for name in ("tokenizer.json", "chat_template.jinja", "vocab.txt", "modeling_own.py"):
        (source / name).write_text(name)
    (source / "README.md").write_text("---\nlicense: mit\ntags: [small]\n---\n# Parent\n")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        (source / name).write_bytes(b"old weights")
    (source / "templates").mkdir()
    (source / "templates" / "tool.jinja").write_text("x")
    edited = operated(source, tmp_path / "edited", direction, card="| toxicity | 0.4 → 0.1 |")
    names = {str(path.relative_to(edited)) for path in edited.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "README.parent.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_own.py",
        "templates/tool.jinja",
        "tokenizer.json",
        "vocab.txt",
    }
    card = (edited / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\ntags:\n- small\n- model-surgery\n---\n")
    assert "toxicity | 0.4 → 0.1" in card
    assert "14 of 144" in card
    assert (edited / "README.parent.md").read_text().endswith("# Parent\n")


def test_a_linked_cache_is_copied_as_files(source, tmp_path, direction):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    before = bytes_of(source)
    edited = operated(linked, tmp_path / "edited", direction)
    assert not any(path.is_symlink() for path in edited.iterdir())
    assert bytes_of(source) == before


def refused(message, source, tmp_path, direction, edit=None):
    destination = tmp_path / "edited"
    with pytest.raises(UserError, match=message):
        if edit is None:
            operated(source, destination, direction)
        else:
            checkpoint.operate(source, edit, destination, progress=False)
    assert not destination.exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_a_destination_that_exists_is_kept(source, tmp_path, direction):
    (tmp_path / "edited").mkdir()
    with pytest.raises(UserError, match="exists already"):
        operated(source, tmp_path / "edited", direction)
    assert list((tmp_path / "edited").iterdir()) == []


def test_another_or_an_edited_checkpoint_is_refused_unless_forced(source, tmp_path, direction):
    edit = checkpoint.plan(source, direction, 0.1, 2.0, progress=False)
    once = checkpoint.operate(source, edit, tmp_path / "once", progress=False)
    refused("another model, or this checkpoint is already", once, tmp_path, direction, edit)
    checkpoint.operate(once, edit, tmp_path / "twice", force=True, progress=False)
    assert (tmp_path / "twice" / "config.json").is_file()


def test_pickled_weights_are_refused(source, tmp_path, direction):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused("only as pytorch_model.bin.*safetensors first", source, tmp_path, direction)


def test_no_weights_and_no_folder_are_refused(source, tmp_path, direction):
    (source / "model.safetensors").unlink()
    refused("holds neither", source, tmp_path, direction)
    refused("is no folder", tmp_path / "nowhere", tmp_path, direction)


@pytest.mark.parametrize("cut", [1, 5000, -4])
def test_a_truncated_shard_is_refused(source, tmp_path, direction, cut):
    shard = source / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:cut])
    refused("model.safetensors is .*fetch it again", source, tmp_path, direction)


def write_shard(path, header, tensors):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)


# By type, how many of it 8 bytes hold.
HELD = {"I64": 1, "U64": 1, "F64": 1, "C64": 1, "I32": 2, "U32": 2, "I16": 4, "U16": 4, "I8": 8}
HELD |= {"U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 16, "F32": 2}


@pytest.mark.parametrize("dtype", HELD)
def test_sizes_are_those_that_safetensors_takes(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    for count, whole in [(HELD[dtype], True), (2 * HELD[dtype], False), (0, False)]:
        entry = {"dtype": dtype, "shape": [count], "data_offsets": [0, 8]}
        write_shard(path, {"a": entry}, bytes(8))
        for read, error in [(read_header, UserError), (safe_open_names, SafetensorError)]:
            if whole:
                read(path)
            else:
                with pytest.raises(error):
                    read(path)


def safe_open_names(path):
    with safe_open(path, "pt") as handle:
        return handle.keys()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"more": {"dtype": "I64", "shape": [2]}}, "does not fit its shape"),
        ({"more": {"dtype": "F8_E4M3", "shape": [9]}}, "does not fit its shape"),
        ({"more": {"dtype": "I65", "shape": [1]}}, "'I65', a type that safetensors does not know"),
        ({"more": {"dtype": None, "shape": [1]}}, "does not know"),
        ({"more": {"dtype": ["F64"], "shape": [1]}}, "does not know"),
        ({"__metadata__": []}, "__metadata__"),
        ({"__metadata__": 0}, "not a whole safetensors file"),
        ({"__metadata__": {"format": 1}}, "__metadata__"),
    ],
)
def test_a_copy_that_would_not_load_is_not_written(source, tmp_path, direction, change, fault):
    edit = checkpoint.plan(source, direction, 0.1, 2.0, progress=False)
    shard = source / "model.safetensors"
    raw = shard.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    end = len(raw) - begin
    if "more" in change:
        change = {"more": change["more"] | {"data_offsets": [end, end + 8]}}
    more = bytes(8) if "more" in change else b""
    write_shard(shard, json.loads(raw[8:begin]) | change, raw[begin:] + more)
    with pytest.raises(SafetensorError):
        load_file(shard)
    refused(fault, source, tmp_path, direction, edit)


def test_a_missing_shard_is_refused(tmp_path, direction):
    source = saved(build("llama"), tmp_path / "source", shard="40KB")
    sorted(source.glob("*.safetensors"))[0].unlink()
    refused("lacks model-00001", source, tmp_path, direction)


def test_an_index_that_leaves_the_folder_is_refused(tmp_path, direction):
    source = saved(build("llama"), tmp_path / "source", shard="40KB")
    files.write_json(source / INDEX, {"weight_map": {"a": "../source/x.safetensors"}})
    refused("other folders", source, tmp_path, direction)


def test_quantized_weights_are_refused(source, tmp_path, direction):
    config = files.read_json(source / "config.json")
    edit = checkpoint.plan(source, direction, 0.1, 2.0, progress=False)
    files.write_json(
        source / "config.json", {**config, "quantization_config": {"quant_method": "gptq"}}
    )
    refused("quantized .gptq", source, tmp_path, direction, edit)
    files.write_json(source / "config.json", config)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, source / "model.safetensors")
    refused("stored as F8_E4M3", source, tmp_path, direction, edit)


@pytest.mark.parametrize("name", ["opt", "gpt_oss"])
def test_an_unknown_layout_is_refused(tmp_path, name):
    source = saved(build(name), tmp_path / "source")
    with pytest.raises(UserError, match=r"looked for mlp\.gate_proj|does not know"):
        Checkpoint.open(source).matrices()


def test_a_full_disk_is_noticed_before_anything_is_copied(source, tmp_path, direction, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(copying, "_share", lambda source, target: False)
    refused("free some space", source, tmp_path, direction)


def test_an_error_while_writing_leaves_nothing(source, tmp_path, direction, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    refused("No space left", source, tmp_path, direction)


def test_file_systems_without_copy_file_range_are_served(source, tmp_path, direction, monkeypatch):
    def refuse(*args):
        raise OSError(18, "Invalid cross-device link")

    one = operated(source, tmp_path / "one", direction)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    other = operated(source, tmp_path / "other", direction)
    assert bytes_of(one) == bytes_of(other)


def test_left_overs_are_removed_and_those_of_the_living_are_not(source, tmp_path, direction):
    stale = tmp_path / ".edited.1.partial"
    stale.mkdir()
    (stale / "config.json").write_text("{}")
    living = tmp_path / ".edited.2.partial"
    living.mkdir()
    with copying._lock(living):
        operated(source, tmp_path / "edited", direction)
        assert living.exists()
    assert not stale.exists()


def test_blocks_past_the_depth_are_left_alone(source, tmp_path, direction):
    tensors = load_file(source / "model.safetensors")
    extra = "model.layers.3.mlp.gate_proj.weight"
    tensors[extra] = tensors["model.layers.0.mlp.gate_proj.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert [m.block for m in Checkpoint.open(source).matrices()] == [0, 1, 2]
    edited = operated(source, tmp_path / "edited", direction)
    assert torch.equal(load_file(edited / "model.safetensors")[extra], tensors[extra])


def test_headers_are_read_as_safetensors_writes_them(source):
    tensors = load_file(source / "model.safetensors")
    found = {stored.name: stored for stored in read_header(source / "model.safetensors")}
    assert found.keys() == tensors.keys()
    assert all(found[name].shape == tuple(t.shape) for name, t in tensors.items())


@pytest.mark.slow
def test_killed_anywhere_it_leaves_no_half_made_copy(tmp_path):
    """Processes killed at their fsyncs, at the rename, and at random moments."""
    source = saved(build("llama", torch.bfloat16), tmp_path / "source", shard="20KB")
    done = subprocess.run(
        [sys.executable, KILL, source, tmp_path / "edited", "6", "6"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed" in done.stdout

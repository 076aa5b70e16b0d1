"""The console command on files: apply, undo, export, inspect, chat, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from peft import PeftModel
from typer.testing import CliRunner

from surgery_lib import Surgery, cli, files, load_model
from surgery_lib.cli import options
from surgery_lib.cli.chat import beside
from surgery_lib.errors import UserError
from surgery_lib.models import packages
from surgery_lib.surgery import region

KEPT = "surgery/rows.safetensors"


def run(*arguments: object, typed: str = "") -> str:
    runner = CliRunner()
    result = runner.invoke(cli.app, list(map(str, arguments)), input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def patch(tiny: Any, tmp_path: Path) -> Path:
    model, _ = tiny
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    rows = region.select(region.cosine_scores(model, direction), 0.2)
    Surgery.build(model, rows, direction, 3.0).save(tmp_path / "patch")
    return tmp_path / "patch"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder), dtype="auto")[0].state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_patch_is_inspected(patch: Path) -> None:
    facts = json.loads(run("inspect", patch))
    assert facts["matrix"] == "gate" and facts["strength"] == 3.0 and facts["width"] == 32
    assert run("inspect", patch / "surgery.safetensors") == run("inspect", patch)


def test_applied_and_undone_it_is_the_same_bits(
    tiny_folder: Path, patch: Path, tmp_path: Path
) -> None:
    edited, back = tmp_path / "edited", tmp_path / "back"
    said = run("apply", tiny_folder, patch, "--out", edited)
    assert f"model-surgery undo {edited}" in " ".join(said.split())
    model, _ = load_model(str(tiny_folder), dtype="auto")
    Surgery.load(patch).apply(model)
    assert same(weights(edited), dict(model.state_dict()))
    run("undo", edited, "--out", back)
    before = {path.name: files.sha256(path) for path in tiny_folder.iterdir()}
    assert {path.name: files.sha256(path) for path in back.iterdir()} == before


def test_of_two_edits_the_last_is_undone(tiny_folder: Path, patch: Path, tmp_path: Path) -> None:
    once, twice, back = (tmp_path / name for name in ("once", "twice", "back"))
    run("apply", tiny_folder, patch, "--out", once)
    model, _ = load_model(str(once))
    direction = torch.ones(model.config.hidden_size)
    Surgery.build(model, torch.tensor([1, 2]), direction, 1.0).save(tmp_path / "second")
    run("apply", once, tmp_path / "second", "--out", twice)
    run("undo", twice, "--out", back)
    assert same(weights(once), weights(back)) and not same(weights(once), weights(twice))
    assert (back / "README.md").read_text() == (once / "README.md").read_text()


def test_what_cannot_be_undone_is_refused(tiny_folder: Path, patch: Path, tmp_path: Path) -> None:
    edited, back = tmp_path / "edited", tmp_path / "back"
    run("apply", tiny_folder, patch, "--out", edited)
    with pytest.raises(UserError, match="exists already"):
        run("undo", edited, "--out", tmp_path)
    with pytest.raises(UserError, match="inside the source"):
        run("undo", edited, "--out", edited / "back")
    tensors = files.read_tensors(edited / "model.safetensors")
    name = next(name for name in tensors if "gate_proj" in name)
    tensors[name] += 1
    files.write_tensors(edited / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(UserError, match="changed since"):
        run("undo", edited, "--out", back)
    (edited / KEPT).unlink()
    with pytest.raises(UserError, match="does not carry the rows"):
        run("undo", edited, "--out", back)
    assert not back.exists() and not list(tmp_path.glob(".*"))


def test_every_kind_is_exported(tiny_folder: Path, patch: Path, tmp_path: Path) -> None:
    run("export", "checkpoint", tiny_folder, patch, "--out", tmp_path / "checkpoint")
    edited = weights(tmp_path / "checkpoint")
    run("export", "adapter", tiny_folder, patch, "--out", tmp_path / "adapter")
    model, _ = load_model(str(tiny_folder))
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, edited[name])
    said = run("export", "gguf-adapter", tiny_folder, patch, "--out", tmp_path / "gguf")
    assert "ollama create" in said and "--lora" in said
    assert GGUFReader(tmp_path / "gguf" / "adapter.gguf").get_field("adapter.type").contents() == (
        "lora"
    )
    modelfile = (tmp_path / "gguf" / "Modelfile").read_text()
    assert modelfile == "FROM ./model.gguf\nADAPTER ./adapter.gguf\n"
    with pytest.raises(UserError, match="did not come as a GGUF file"):
        run("export", "gguf", tiny_folder, patch, "--out", tmp_path / "whole")
    with pytest.raises(UserError, match="exists already"):
        run("export", "adapter", tiny_folder, patch, "--out", tmp_path / "adapter")


def test_a_gguf_file_is_exported_edited(
    tiny_folder: Path, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "own.gguf"
    writer = GGUFWriter(source, "llama")
    model, _ = load_model(str(tiny_folder))
    for block, layer in enumerate(model.model.layers):
        writer.add_tensor(f"blk.{block}.ffn_gate.weight", layer.mlp.gate_proj.weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert packages.original(str(source)) == source and packages.original("org/name") is None
    # What transformers would make of a whole file.
    monkeypatch.setattr("surgery_lib.models.gguf.own", lambda path: tiny_folder)
    out = tmp_path / "whole"
    said = run("export", "gguf", source, patch, "--out", out, "--stored", "f32")
    assert f"{out / 'Modelfile'}" in said
    assert (out / "Modelfile").read_text() == "FROM ./own-edited.gguf\n"
    Surgery.load(patch).apply(model)
    held = {tensor.name: tensor.data for tensor in GGUFReader(out / "own-edited.gguf").tensors}
    for block, layer in enumerate(model.model.layers):
        found = torch.from_numpy(held[f"blk.{block}.ffn_gate.weight"].copy())
        torch.testing.assert_close(found, layer.mlp.gate_proj.weight.data)


def test_both_answer_side_by_side(tiny_folder: Path, patch: Path) -> None:
    asked = ("chat", tiny_folder, patch, "--max-new-tokens", 6)
    said = run(*asked, typed="hello\nthere\n\n")
    assert said.count("base") == 2 and said.count("edited") == 2 and " │ " in said
    once = run(*asked, "--message", "hello")
    assert once.startswith("> hello\n") and once.count("edited") == 1


def test_two_columns_are_as_wide_as_the_terminal() -> None:
    found = beside("one two three " * 10, "four\nfive", 80).splitlines()
    assert max(map(len, found)) <= 80 and found[0].split() == ["base", "│", "edited"]
    assert found[2].endswith("│ four") and found[3].endswith("│ five")
    assert beside("a", "b", 40) == "[base]\na\n\n[edited]\nb"


def test_another_model_is_refused(patch: Path, tmp_path: Path) -> None:
    for arguments in (
        ("apply", "embedded:patient", patch, "--out", tmp_path / "out"),
        ("chat", "embedded:patient", patch, "--message", "hello"),
        ("export", "gguf-adapter", "embedded:patient", patch, "--out", tmp_path / "out"),
    ):
        with pytest.raises(UserError):
            run(*arguments)
    assert not (tmp_path / "out").exists()


def test_refusals_are_one_line_with_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["model-surgery", "inspect", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_needs_no_torch() -> None:
    code = "import sys, surgery_lib.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_texts_are_read_from_any_of_the_three_forms(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.csv").write_text("text\none\ntwo\n")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "d.csv").write_text("words\none\n")
    for name in ("a.txt", "b.csv", "c.jsonl"):
        assert options.read_texts(tmp_path / name) == ["one", "two"]
    with pytest.raises(UserError, match="no column text"):
        options.read_texts(tmp_path / "d.csv")
    with pytest.raises(UserError, match="there is no file"):
        options.read_texts(tmp_path / "e.txt")

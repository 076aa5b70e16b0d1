"""Loading: the right weights, or one line that says what is wrong and what to do."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery_lib import models
from surgery_lib.errors import UserError


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_a_folder_is_loaded_as_it_is(tiny_folder: Path) -> None:
    model, tokenizer = models.load_model(str(tiny_folder))
    held = load_file(tiny_folder / "model.safetensors")
    assert torch.equal(model.lm_head.weight, held["lm_head.weight"])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert str(models.resolved_revision(model)).startswith("local-")
    half, _ = models.load_model(str(tiny_folder), dtype="bfloat16")
    assert half.dtype == torch.bfloat16


def test_the_mirror_stands_in_for_the_hub(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "models" / "some--tiny")
    monkeypatch.setenv("SURGERY_MIRROR", str(tmp_path))
    assert models.resolve("some/tiny") == tmp_path / "models" / "some--tiny"
    assert models.resolve("some/other") == "some/other"
    model, _ = models.load_model("some/tiny")
    assert model.config.num_hidden_layers == 3
    monkeypatch.setenv("SURGERY_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="correct it or unset it"):
        models.resolve("some/tiny")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not at all")


def spoil(value: float) -> Callable[[Path], None]:
    def spoiling(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.gate_proj.weight"][3, 4] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return spoiling


def drop_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


SPOILT: list[tuple[Callable[[Path], Any], str]] = [
    (truncate, r"model\.safetensors is corrupt or truncated.*again"),
    (garbage, r"model\.safetensors is corrupt or truncated"),
    (spoil(float("nan")), r"layers\.1\.mlp\.gate_proj\.weight holds NaN or infinity; restore"),
    (spoil(float("-inf")), "holds NaN or infinity"),
    (drop_a_weight, r"lacks 1 weights.*gate_proj"),
    (lambda folder: (folder / "model.safetensors").unlink(), "is missing; save or download"),
    (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    (
        lambda folder: (folder / "config.json").write_text('{"model_type": "no-such"}'),
        "could not be loaded",
    ),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "no usable tokenizer"),
]


@pytest.mark.parametrize(("harm", "words"), SPOILT)
def test_what_is_wrong_with_a_spoilt_folder(
    copy: Path, harm: Callable[[Path], Any], words: str
) -> None:
    harm(copy)
    with pytest.raises(UserError, match=words) as caught:
        models.load_model(str(copy))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_request(tiny_folder: Path) -> None:
    for options, words in [
        ({"name": "./nowhere"}, "does not exist; give an existing folder or a hub id"),
        ({"name": "embedded:nobody"}, "embedded are patient, classifier"),
        ({"name": str(tiny_folder), "dtype": "int3"}, "unknown dtype"),
        ({"name": str(tiny_folder), "device": "abacus"}, "unknown device"),
        ({"name": str(tiny_folder), "quantization": "2bit"}, "4bit, 8bit"),
    ]:
        with pytest.raises(UserError, match=words):
            models.load_model(**options)  # type: ignore[arg-type]


def test_quantization_says_what_to_install(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'model-surgery\[quantization\]'"):
        models.load_model(str(tiny_folder), quantization="4bit")

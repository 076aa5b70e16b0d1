"""Models from packages and GGUF files: converted weights are the file's, errors are one line."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import torch
from safetensors.torch import load_file

from surgery_lib import models
from surgery_lib.errors import UserError
from surgery_lib.models import dtypes, gguf, packages


def _unpermuted(weight: np.ndarray) -> np.ndarray:
    """GGUF interleaves the halves of each head of queries and keys; transformers does not."""
    return (
        weight.reshape(tiny_gguf.HEADS, weight.shape[0] // tiny_gguf.HEADS // 2, 2, weight.shape[1])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(gguf.CACHE, str(folder))
    return folder


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_converted_weights_are_the_files(tmp_path: Path, cache: Path, kind: type) -> None:
    weights = tiny_gguf.write(tmp_path / "tiny.gguf", kind)
    folder = models.resolve(str(tmp_path / "tiny.gguf"))
    assert isinstance(folder, Path) and folder.parent == cache
    held = load_file(folder / "model.safetensors")
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "ffn_gate": "mlp.gate_proj",
    }
    names |= {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}
    for block in range(tiny_gguf.BLOCKS):
        for short, long in names.items():
            wanted = weights[f"blk.{block}.{short}.weight"]
            wanted = wanted.astype(kind) if wanted.ndim == 2 else wanted
            if short in ("attn_q", "attn_k"):
                wanted = _unpermuted(wanted)
            found = held[f"model.layers.{block}.{long}.weight"]
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, torch.tensor(wanted).float().bfloat16()), short
    model, tokenizer = models.load_model(str(tmp_path))  # a folder with one GGUF file
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["truncated", "unknown", "magic"])
def test_damaged_files_are_one_line_and_leave_nothing(
    tmp_path: Path, cache: Path, damage: str
) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, architecture="sphinx" if damage == "unknown" else "llama")
    raw = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    if damage == "magic":
        path.write_bytes(b"JUNK" + raw[4:])
    with pytest.raises(UserError) as caught:
        models.resolve(str(path))
    said = {"truncated": "truncated", "unknown": "'sphinx'", "magic": "no GGUF"}[damage]
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def _install(
    site: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()
) -> None:
    """A distribution as an installer leaves it: files, METADATA, RECORD with sizes and hashes."""
    module = name.replace("-", "_")
    lines = []
    for file, content in files.items():
        path = site / module / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        lines.append(f"{module}/{file},,{len(content)}")
    about = site / f"{module}-1.0.dist-info"
    about.mkdir()
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
    (about / "RECORD").write_text("\n".join(lines))


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in two parts, installed; the folder of its packages."""
    tiny_gguf.write(tmp_path / "tiny.gguf")
    raw = (tmp_path / "tiny.gguf").read_bytes()
    site = tmp_path / "site"
    half = len(raw) // 2
    sums = f"{hashlib.sha256(raw).hexdigest()}  tiny.gguf\n".encode()
    _install(site, "tiny-gguf", {"SHA256SUMS": sums}, ("tiny-gguf-part1", "tiny-gguf-part2"))
    _install(site, "tiny-gguf-part1", {"tiny.gguf.part00": raw[:half]})
    _install(site, "tiny-gguf-part2", {"tiny.gguf.part01": raw[half:]})
    monkeypatch.syspath_prepend(str(site))
    return site


def test_parts_become_the_file(tmp_path: Path, parts: Path) -> None:
    assert models.resolve("package:tiny-gguf/tiny.gguf") == gguf.own(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "package"])
def test_damaged_parts_are_one_line(parts: Path, cache: Path, damage: str) -> None:
    part = parts / "tiny_gguf_part2" / "tiny.gguf.part01"
    raw = part.read_bytes()
    if damage == "missing":
        part.unlink()
    elif damage == "short":
        part.write_bytes(raw[:-1])
    elif damage == "changed":
        part.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        shutil.rmtree(parts / "tiny_gguf_part2-1.0.dist-info")
    said = {"missing": "is missing", "short": "bytes and not", "changed": "SHA-256"}
    with pytest.raises(UserError, match=said.get(damage, "make models")) as caught:
        models.resolve("package:tiny-gguf/tiny.gguf")
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["no-such-package/model.gguf", "tiny-gguf/other.gguf", "tiny-gguf"]
)
def test_what_is_not_there_says_what_to_do(parts: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"make models|write package:"):
        packages.resolve(name)


def test_auto_keeps_small_models_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    folder = gguf.own(tmp_path / "tiny.gguf")
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: False)
    assert models.load_model(str(folder), dtype="auto", device="cpu")[0].dtype == torch.bfloat16
    monkeypatch.setattr(dtypes, "LARGE", 10)
    assert models.load_model(str(folder), dtype="auto", device="cpu")[0].dtype == torch.float32
    assert models.dtype_of(str(folder), "cpu") == "float32"
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: True)
    assert models.load_model(str(folder), dtype="auto", device="cpu")[0].dtype == torch.bfloat16

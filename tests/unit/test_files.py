"""Files are whole or not there, and a broken one is named with what to do about it."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery_lib import files
from surgery_lib.errors import UserError


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_space_left_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        files.write_json(path, {"a": 2})
    with pytest.raises(UserError, match="No space left"):
        files.write_tensors(tmp_path / "b.safetensors", {"w": torch.ones(2)})
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert files.read_json(path) == {"a": 1}


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        files.write_json(tmp_path / "file" / "a.json", 1)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_tensors_are_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"w": torch.arange(64.0)}, {"k": "v"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.safetensors is not a whole safetensors file"):
        files.read_tensors(path)
    if keep != -1:
        with pytest.raises(UserError, match=r"a\.safetensors is not a whole safetensors file"):
            files.read_metadata(path)


def test_corrupt_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        files.read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        files.read_jsonl(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        files.read_json(path)


@pytest.mark.parametrize("read", [files.read_json, files.read_jsonl, files.read_tensors])
def test_a_missing_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "missing")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"a": np.float32(0.5), "b": [np.int64(2), float("nan")], "c": torch.ones(2)}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == {"a": 0.5, "b": [2, None], "c": [1.0, 1.0]}
    files.write_jsonl(tmp_path / "a.jsonl", [{"a": "\u2028 line"}, {"a": 2}])
    assert files.read_jsonl(tmp_path / "a.jsonl") == [{"a": "\u2028 line"}, {"a": 2}]
    tensors = {"w": torch.randn(3, 4).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    files.write_tensors(tmp_path / "a.safetensors", tensors, {"k": "v"})
    held = files.read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(held[name], tensors[name]) for name in tensors)
    assert files.read_metadata(tmp_path / "a.safetensors") == {"k": "v"}


def test_fingerprints_tell_values_apart() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16)
    parts: list[Any] = [b"a", "a", 1, [1], {"a": 1}, tensor, tensor.view(2, 3), tensor.float()]
    assert len({files.fingerprint(part) for part in parts}) == len(parts)
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})
    assert files.fingerprint(tensor) == files.fingerprint(tensor.clone())


def test_the_same_contents_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.ones(2) * i for i in range(5)}
    metadata = {f"key{i}": str(i) for i in range(20)}
    for name in ("a", "b"):
        files.write_tensors(tmp_path / f"{name}.safetensors", tensors, metadata)
    first, second = (tmp_path / f"{name}.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert files.read_metadata(first) == metadata

"""Reading and writing the project's files: JSON, JSON lines and safetensors, never half-written.

Every file is written under a temporary name in its own folder and renamed when it is complete, so
that a reader sees either the old file or the new one, whatever kills the writer.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from surgery_lib.errors import UserError

HEADER = "model-surgery"  # the metadata's one key
PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """The repository that this package belongs to; the working folder where it stands alone."""
    root = PACKAGE.parent
    return root if (root / "profiles").is_dir() else Path.cwd()


def bundled(name: str) -> Path:
    """A folder that comes with the package: the repository's, or the wheel's copy of it."""
    root = PACKAGE.parent
    return root / name if (root / "profiles").is_dir() else PACKAGE / "bundled" / name


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    Raises UserError where the file cannot be written, a full disk included.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); "
            "free some space or choose another folder, then start again"
        ) from error
    except SafetensorError as error:
        raise UserError(
            f"{path} could not be written ({error}); free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # the error that led here says more than a failed removal
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and paths into what JSON knows; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text, keys in the order given."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False)


def loads(text: str) -> Any:
    """The value of a JSON text."""
    return json.loads(text)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given."""
    write_text(path, dumps(value, indent=1) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; UserError names the file where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the step that writes it first") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(dumps(row) + "\n")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line; UserError names the line that is not one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is not JSON ({error}); mend or drop it"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object; write one a line")
        rows.append(row)
    return rows


def write_tensors(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors as safetensors, the same bytes for the same contents.

    The metadata go under one key: safetensors writes several in an order that differs every time.
    """
    header = {HEADER: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    with atomic(path) as temporary:
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
            temporary,
            metadata=header,
        )


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read named tensors; UserError where the file is missing, truncated or not safetensors."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; run the step that writes it first")
    try:
        return load_file(path)
    except (SafetensorError, struct.error, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); delete it and make it again"
        ) from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The text metadata in the header of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as handle:
            found = dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error
    return dict(json.loads(found[HEADER])) if HEADER in found else found


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """A 16-digit hash of values, the same on every machine: bytes, tensors, what JSON knows."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            raw = part.detach().contiguous().cpu()
            digest.update(f"{raw.dtype}{tuple(raw.shape)}".encode())
            digest.update(raw.flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(json.dumps(plain(part), sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]

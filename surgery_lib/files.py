"""Reading and writing the project's files: JSON, JSON lines and safetensors, never half-written.

Every file is written under a temporary name in its own folder and renamed when it is complete, so
that a reader sees either the old file or the new one, whatever kills the writer. What is read from
outside comes through here too: text that is no UTF-8, JSON or YAML that is broken, endless or
nested without end is a UserError that names the file. PyTorch is imported where tensors are read or
written: who runs notebooks, or checks a profile, does without it.
"""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from surgery_lib.errors import UserError
from surgery_lib.parsing import bounded as bounded
from surgery_lib.parsing import dumps, is_tensor, loads, read_text
from surgery_lib.parsing import parse_yaml as parse_yaml
from surgery_lib.parsing import plain as plain

if TYPE_CHECKING:
    import torch

CACHE = "MODEL_SURGERY_CACHE"  # the variable that names another folder for caches
SMALL_CACHE = 256 << 20  # bytes that a cache of small things may hold
HEADER = "model-surgery"  # the metadata's one key
PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """The repository that this package belongs to; the working folder where it stands alone."""
    root = PACKAGE.parent
    return root if (root / "profiles").is_dir() else Path.cwd()


def cache() -> Path:
    """The folder of everything that is kept because it is expensive and can be made again."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else home() / ".cache"


def bundled(name: str) -> Path:
    """A folder that comes with the package: the repository's, or the wheel's copy of it."""
    root = PACKAGE.parent
    return root / name if (root / "profiles").is_dir() else PACKAGE / "bundled" / name


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    Raises:
        UserError: The file cannot be written, a full disk included.
    """
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is no path: it holds a null character; correct it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} could not be written ({error.reason}); drop the broken characters"
        ) from error
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


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left behind."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.tmp")
    for other in path.parent.iterdir():
        found = pattern.fullmatch(other.name)
        if found and int(found[1]) != os.getpid() and not _alive(int(found[1])):
            with suppress(OSError):
                other.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs as somebody else
        return True
    return True


def append(path: Path | str, line: str) -> None:
    """Add a line to a journal and bring it to the disk; UserError where that cannot be done.

    The line break comes first too: a crash may have cut the last line short.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(f"\n{line}\n")
            handle.flush()
            os.fsync(handle.fileno())
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(
            f"{path} could not be written ({getattr(error, 'strerror', None) or error}); free some "
            "space or choose another folder, then start again: what was measured before is kept"
        ) from error


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 for what is gone."""
    total = 0
    for one in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError):
            total += one.lstat().st_size
    return total


def prune(folder: Path, pattern: str, limit: int, keep: Path | None = None) -> int:
    """Remove what of `pattern` was used longest ago until the rest takes `limit` bytes; how many.

    `limit=0` removes all, but never `keep`. What another process removes meanwhile is gone as well.
    A time in the future, from a clock that was set back, counts as newest and harms nothing.
    """
    found = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            found.append((path.stat().st_mtime, size(path), path))
    total, removed = sum(taken for _, taken, _ in found), 0
    for _, taken, path in sorted(found):
        if total <= limit:
            break
        if path == keep:
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed += 1
        total -= taken
    return removed


def is_file(path: Path | str) -> bool:
    """Whether a file is there; a name that no file can have is not."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given."""
    write_text(path, dumps(value, indent=1) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; UserError names the file where it is missing or not JSON."""
    return loads(read_text(path), str(path))


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
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: Path | str) -> list[tuple[int, dict[str, Any]]]:
    """The same, each object with the number of its line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row = loads(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object; write one a line")
        rows.append((number, row))
    return rows


def write_tensors(
    path: Path | str,
    tensors: "Mapping[str, torch.Tensor]",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors as safetensors, the same bytes for the same contents.

    The metadata go under one key: safetensors writes several in an order that differs every time.
    """
    from safetensors.torch import save_file

    header = {HEADER: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    with atomic(path) as temporary:
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
            temporary,
            metadata=header,
        )


def read_tensors(path: Path | str) -> "dict[str, torch.Tensor]":
    """Read named tensors; UserError where the file is missing, truncated or not safetensors."""
    if not is_file(path):
        raise UserError(f"{path} does not exist; run the step that writes it first")
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, struct.error, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); delete it and make it again"
        ) from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The text metadata in the header of a safetensors file."""
    try:
        with safe_open(path, framework="numpy") as handle:
            found = dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); make it again"
        ) from error
    own = loads(found[HEADER], f"{path}, its header") if HEADER in found else found
    if not isinstance(own, dict) or not all(isinstance(text, str) for text in own.values()):
        raise UserError(f"{path} has a header of another form; make it again")
    return own


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """A 16-digit hash of values, the same on every machine: bytes, tensors, what JSON knows."""
    digest = hashlib.sha256()
    for part in parts:
        if is_tensor(part):
            import torch

            raw = part.detach().contiguous().cpu()
            digest.update(f"{raw.dtype}{tuple(raw.shape)}".encode())
            digest.update(raw.flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(json.dumps(plain(part), sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]

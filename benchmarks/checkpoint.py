"""Surgery on a checkpoint's files, against copying the same files.

    python benchmarks/checkpoint.py [--gigabytes 4] [--folder /somewhere/with/room]

Makes a random Llama in several shards, times `cp -r`, `cp -r` with its data on the disk, and the
operation in turn, each in a process of its own, with the peak memory of the latter; then kills it
at random moments and looks at what is left. Everything made is deleted.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import ratio, report
from safetensors.torch import save_file

from surgery_lib import files

WIDTH, UNITS, VOCABULARY = 4096, 11008, 32000
LAYERS_A_SHARD = 2
SHAPES = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"} | {
    "mlp.gate_proj": (UNITS, WIDTH),
    "mlp.up_proj": (UNITS, WIDTH),
    "mlp.down_proj": (WIDTH, UNITS),
}
LAYER_BYTES = 2 * sum(rows * columns for rows, columns in SHAPES.values())
FRACTION = 16384 / 352256  # the paper's share of rows
KILL = Path("tests/kill_checkpoint.py")

# Runs in a process of its own: plan or operate, and say how long that took without starting Python.
CHILD = """
import sys, time
import torch
from surgery_lib import checkpoint
from surgery_lib.surgery import Surgery
step, source, patch, destination = sys.argv[1:]
direction = torch.randn({width}, generator=torch.Generator().manual_seed(0))
start = time.perf_counter()
if step == "plan":
    edit = checkpoint.plan(source, direction, {fraction}, 1.0, progress=False)
else:
    edit = Surgery.load(patch)
    checkpoint.operate(source, edit, destination, progress=False)
print("seconds", time.perf_counter() - start)
if step == "plan":
    edit.save(patch)
"""


def make(folder: Path, gigabytes: float) -> int:
    """Write a random bfloat16 Llama of at least that size; returns its bytes."""
    layers = int(gigabytes * 1e9 / LAYER_BYTES) + 1
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)

    groups = [range(start, min(start + LAYERS_A_SHARD, layers)) for start in range(0, layers, 2)]
    index = {}
    for number, group in enumerate([*groups, None]):
        name = f"model-{number + 1:05}-of-{len(groups) + 1:05}.safetensors"
        if group is None:
            tensors = {
                "model.embed_tokens.weight": random(VOCABULARY, WIDTH),
                "lm_head.weight": random(VOCABULARY, WIDTH),
                "model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16),
            }
        else:
            tensors = {
                f"model.layers.{layer}.{path}.weight": random(*shape)
                for layer in group
                for path, shape in SHAPES.items()
            }
            for layer in group:
                for norm in ("input_layernorm", "post_attention_layernorm"):
                    tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(
                        WIDTH, dtype=torch.bfloat16
                    )
        index.update(dict.fromkeys(tensors, name))
        save_file(tensors, folder / name, metadata={"format": "pt"})
    size = sum(path.stat().st_size for path in folder.iterdir())
    files.write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": UNITS,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "vocab_size": VOCABULARY,
        "dtype": "bfloat16",
    }
    files.write_json(folder / "config.json", config)
    return size


def run_child(step: str, source: Path, patch: Path, destination: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB, of the whole process, mapped files included)."""
    code = CHILD.format(width=WIDTH, fraction=FRACTION)
    command = [sys.executable, "-c", code, step, str(source), str(patch), str(destination)]
    done = subprocess.run(
        ["/usr/bin/time", "-v", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert found is not None
    return float(done.stdout.split()[-1]), int(found[1]) * 1024 / 1e6


def copy(source: Path, destination: Path, synced: bool) -> float:
    """Seconds of `cp -r`, until its data are on the disk where that is asked for."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(destination)], check=True)
    if synced:
        subprocess.run(["sync", "-f", str(destination)], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="surgery-benchmark-", dir=arguments.folder))
    try:
        source, patch, copied, edited = (folder / n for n in ("source", "patch", "copy", "edited"))
        kind = file_system(folder)
        size = make(source, arguments.gigabytes)
        shards = len(list(source.glob("*.safetensors")))
        seconds: dict[str, list[float]] = {
            way: [] for way in ("plan", "cp -r", "cp -r + sync", "operate")
        }
        peaks: dict[str, list[float]] = {"plan": [], "operate": []}
        for _ in range(arguments.rounds):
            for way in seconds:
                subprocess.run(["sync", "-f", str(folder)], check=True)
                if way in peaks:
                    taken, peak = run_child(way, source, patch, edited)
                    peaks[way].append(peak)
                else:
                    taken = copy(source, copied, synced="sync" in way)
                seconds[way].append(taken)
                for made in (copied, edited):
                    shutil.rmtree(made, ignore_errors=True)
        kills = subprocess.run(
            [sys.executable, str(KILL), str(source), str(edited), "0", str(arguments.kills)],
            capture_output=True,
            text=True,
            check=False,
        )
        if kills.returncode:
            sys.exit(kills.stdout + kills.stderr)
    finally:
        shutil.rmtree(folder)
    ratios = {way: ratio(seconds, "operate", way) for way in ("cp -r", "cp -r + sync")}
    table = {
        "checkpoint": f"{size / 1e9:.2f} GB in {shards} shards, {FRACTION:.2%} of gate rows edited",
        **{f"{way}, seconds": f"{statistics.median(taken):.2f}" for way, taken in seconds.items()},
        **{f"operate over {way}": f"{value:.2f}" for way, value in ratios.items()},
        **{f"{way}, peak memory": f"{max(peak):.0f} MB" for way, peak in peaks.items()},
        "kills at random moments": kills.stdout.strip(),
    }
    result = {
        "bytes": size,
        "shards": shards,
        "fraction": FRACTION,
        "seconds": seconds,
        "operate_over": ratios,
        "peak_mb": {way: max(peak) for way, peak in peaks.items()},
        "kills": kills.stdout.strip(),
        "file_system": kind,
    }
    report("checkpoint", result, table)


def file_system(path: Path) -> str:
    """The kind of file system, as df names it."""
    done = subprocess.run(["df", "--output=fstype", str(path)], capture_output=True, text=True)
    return done.stdout.split()[-1] if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()

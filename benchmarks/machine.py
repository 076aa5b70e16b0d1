"""What every benchmark needs: the machine in words, times measured in turn, a table, a file."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from surgery_lib import files

RESULTS = Path("results/benchmarks")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions; nothing that names the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def mirrored(data: str) -> tuple[Any, Any, list[Any]] | None:
    """Model, tokenizer and rows of a data set, from the mirror; None where there is none."""
    mirror = os.environ.get("SURGERY_MIRROR")
    if not mirror:
        return None
    folder = Path(mirror) / "models/local--real-text-6m"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model, tokenizer, files.read_jsonl(Path(mirror) / "datasets" / data)


def random_llama(**more: Any) -> Any:
    """A model of the same size with random weights."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, **more)
    return transformers.LlamaForCausalLM(config).eval()


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round, one way after the other, so that all meet the same."""
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            measured[way].append(timed(run))
    return measured


def ratio(measured: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median over the rounds of one way's time over another's in the same round."""
    pairs = zip(measured[over], measured[under], strict=True)
    return statistics.median(one / other for one, other in pairs)


def report(name: str, result: Mapping[str, Any], table: Mapping[str, str]) -> None:
    """Print a table and write results/benchmarks/<name>.json with the machine."""
    width = max(map(len, table))
    print(f"\n{name}")
    for what, value in table.items():
        print(f"  {what:<{width}}  {value}")
    files.write_json(
        RESULTS / f"{name}.json", {"schema_version": 1, "machine": describe(), **result}
    )

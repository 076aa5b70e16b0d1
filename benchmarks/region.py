"""Selecting rows at 7B size, and editing them, against reading the same bytes once.

    python benchmarks/region.py

32 blocks of 11,008 gate rows of 4,096 bfloat16 numbers (2.9 GB, really allocated), random. Every
round times all ways one after the other; ratios are medians over rounds. The authors' loop looks at
one row after the other; it is timed on part of the rows and scaled. Processor seconds stand beside
the wall clock's: on a machine with other work they are the ones to compare.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import nn

from surgery_lib import files
from surgery_lib.models import layout
from surgery_lib.surgery import Surgery, region

RESULT = Path("results/benchmarks/region.json")
BLOCKS, ROWS, WIDTH = 32, 11_008, 4_096
SELECTED = 16_384  # the paper's K
AUTHORS_ROWS = 4_000  # what the authors' loop is timed on


class Gates(nn.Module):
    """No more of a Llama than its gate projections and its embedding."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(1, WIDTH)
        self.layers = nn.ModuleList(nn.Module() for _ in range(blocks))
        noise = torch.randn(ROWS, WIDTH).mul_(0.02).bfloat16()
        for index, block in enumerate(self.layers):
            block.mlp = nn.Module()
            gate = nn.Module()
            weight = noise.roll(17 * index + 1, dims=1)  # other numbers at memory speed
            gate.weight = nn.Parameter(weight, requires_grad=False)
            block.mlp.gate_proj = gate

    def get_input_embeddings(self) -> nn.Embedding:
        """What tells the width."""
        return self.embeddings


def read_once(weights: list[torch.Tensor]) -> None:
    """One pass over all bytes, at the speed of the memory."""
    for weight in weights:
        weight.view(torch.int64).sum()


def convert(weights: list[torch.Tensor]) -> None:
    """All rows in float32, as selection needs them, and nothing done with them."""
    for _ in region.chunks(weights):
        pass


def authors(weights: list[torch.Tensor], direction: torch.Tensor) -> None:
    """Row after row, as in the authors' modify.py."""
    scores = []
    row = 0
    for weight in weights:
        for vector in weight:
            cosine = torch.nn.functional.cosine_similarity(vector.float(), direction, dim=0)
            scores.append(cosine.item())
            row += 1
            if row == AUTHORS_ROWS:
                return


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall clock and of the processor that a call takes."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Gates(arguments.blocks)
    weights = [rows.weight for rows in layout.weight_rows(model)]
    direction = torch.randn(WIDTH)
    total = ROWS * arguments.blocks
    rows = region.select(region.cosine_scores(model, direction), SELECTED)
    surgery = Surgery.build(model, rows, direction, 1.0)

    def select() -> None:
        region.select(region.cosine_scores(model, direction), SELECTED)

    def operate() -> None:
        with surgery.applied(model):
            pass

    ways: dict[str, Callable[[], object]] = {
        "read": lambda: read_once(weights),
        "convert": lambda: convert(weights),
        "select": select,
        "apply_and_undo": operate,
        "authors_part": lambda: authors(weights, direction),
    }
    for run in ways.values():
        run()
    rounds = [{way: timed(run) for way, run in ways.items()} for _ in range(arguments.rounds)]
    scale = total / AUTHORS_ROWS
    seconds: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, float]] = {}
    for clock, name in enumerate(("wall", "processor")):
        taken = [{way: both[clock] for way, both in each.items()} for each in rounds]
        seconds[name] = {way: statistics.median(each[way] for each in taken) for way in ways}
        ratios[name] = {
            "convert / read once": statistics.median(e["convert"] / e["read"] for e in taken),
            "select / read once": statistics.median(e["select"] / e["read"] for e in taken),
            f"authors' loop (scaled from {AUTHORS_ROWS} rows) / select": statistics.median(
                scale * e["authors_part"] / e["select"] for e in taken
            ),
        }
    gigabytes = total * WIDTH * 2 / 1e9
    print(f"{total} rows, {gigabytes:.2f} GB bfloat16, {torch.get_num_threads()} threads")
    print(f"  {'medians of ' + str(len(rounds)):<50} {'wall':>10} {'processor':>10}")
    for table, unit in ((seconds, "s"), (ratios, "x")):
        for way in table["wall"]:
            both = [table[name][way] for name in ("wall", "processor")]
            print(f"  {way:<50} {both[0]:8.2f} {unit} {both[1]:8.2f} {unit}")
    files.write_json(
        RESULT,
        {
            "schema_version": 1,
            "rows": total,
            "selected": SELECTED,
            "gigabytes": gigabytes,
            "threads": torch.get_num_threads(),
            "rounds": len(rounds),
            "seconds": seconds,
            "ratios": ratios,
            "machine": describe(),
        },
    )


if __name__ == "__main__":
    main()

"""Covariance-aware surgery at 7B shapes: time and memory of one block, projected to 32.

    python benchmarks/covariance.py

One block of 11,008 gate rows over 4,096 numbers with random weights. Statistics are of a stated
number of random input tokens: the second moment of what is spared, and the rows' mean response to
the behaviour; then the solve for the read direction and the scores. The forward pass that brings
the inputs is any method's and is not counted. Peak memory is of the whole process, block included.
"""

import argparse
import resource
from functools import partial
from typing import Any

import torch
from machine import report, timed
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from surgery_lib.surgery import covariance
from surgery_lib.surgery.effects import slopes

BLOCKS, ROWS, WIDTH = 32, 11_008, 4_096
TOKENS_PER_BATCH = 1_024
# Tokens that a fit reads of either kind, for the projection: 400 texts of 50 tokens.
FIT_TOKENS = 20_000


def measure(tokens: int) -> dict[str, Any]:
    """Seconds of every stage over so many tokens of each kind, and the peak in bytes."""
    generator = torch.Generator().manual_seed(0)
    block = nn.Module()
    mlp: Any = LlamaMLP(LlamaConfig(hidden_size=WIDTH, intermediate_size=ROWS))
    block.mlp = mlp.requires_grad_(False)
    second, response = torch.zeros(WIDTH, WIDTH), torch.zeros(ROWS, WIDTH)
    seconds = {"second moment": 0.0, "response": 0.0}
    mean = torch.zeros(WIDTH)

    def respond(x: torch.Tensor) -> None:
        response.addmm_(slopes(block, mlp.act_fn, x).t(), x)

    for _ in range(tokens // TOKENS_PER_BATCH):
        x = torch.randn(TOKENS_PER_BATCH, WIDTH, generator=generator)
        seconds["second moment"] += timed(partial(second.addmm_, x.t(), x))
        seconds["response"] += timed(partial(respond, x))
        mean += x.sum(0)
    second /= tokens
    found: dict[str, torch.Tensor] = {}
    seconds["solve"] = timed(lambda: found.update(p=covariance.solve(second, mean / tokens, 0.1)))
    write = torch.randn(WIDTH, generator=generator)
    seconds["scores"] = timed(lambda: (response @ found["p"]) * (mlp.down_proj.weight.t() @ write))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens": tokens, "seconds": seconds, "peak_bytes": peak}


def main() -> None:
    """Measure, project, write results/benchmarks/covariance.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2_048)
    found = measure(parser.parse_args().tokens)
    seconds, scale = found["seconds"], FIT_TOKENS / found["tokens"]
    streamed = (seconds["second moment"] + seconds["response"]) * scale
    all_blocks = BLOCKS * (streamed + seconds["solve"] + seconds["scores"])
    kept = 4 * BLOCKS * (WIDTH * WIDTH + ROWS * WIDTH)
    result = {
        **found,
        "shapes": {"blocks": BLOCKS, "rows": ROWS, "width": WIDTH},
        "projected": {"tokens": FIT_TOKENS, "seconds": all_blocks, "kept_bytes_at_once": kept},
    }
    table = {
        **{f"{name}, one block, s": f"{value:.2f}" for name, value in seconds.items()},
        "peak of the process, GB": f"{found['peak_bytes'] / 1e9:.2f}",
        f"32 blocks, {FIT_TOKENS} tokens of each kind, s (projected)": f"{all_blocks:.0f}",
        "kept where all blocks are at once, GB": f"{kept / 1e9:.1f}",
    }
    report("covariance", result, table)


if __name__ == "__main__":
    main()

"""How cost grows: with texts, layers, width and rows, each alone; a log-log figure with exponents.

    python benchmarks/scaling.py

Random Llamas on this machine's CPU. Reading activations is measured over texts, layers and width;
scoring all rows over layers, width and rows of a block; apply and undo over selected rows. The
exponent is the slope of a least-squares line through the logarithms of the fastest of several
runs, with its 95 % interval. Where width grows, so do the numbers in a row *and* in every matrix of
the forward pass: there 2 is what linear in the parameters looks like.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers as hf
from machine import RESULTS, report, timed
from scipy import stats

from surgery_lib import activations, region
from surgery_lib.surgery import Surgery

Cost = Callable[[int], float]
VOCABULARY = 128
TOKENS = 64


class Letters:
    """A tokenizer of letters: the texts need one, the cost lies elsewhere."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) % VOCABULARY for c in text] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {}


def llama(layers: int = 4, width: int = 256, units: int = 688) -> Any:
    """A random Llama."""
    config = hf.LlamaConfig(
        hidden_size=width,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=VOCABULARY,
    )
    return hf.LlamaForCausalLM(config).eval()


def reading(model: Any, texts: int, rounds: int) -> float:
    """Seconds to read the pooled states of all layers; the fastest round."""
    made = ["".join(chr(97 + (i * n) % 26) for i in range(TOKENS)) for n in range(texts)]

    def run() -> None:
        activations.pooled_states(model, Letters(), made, progress=False)

    return min(timed(run) for _ in range(rounds))


def scoring(model: Any, rounds: int) -> float:
    """Seconds to score all gate rows."""
    direction = torch.randn(model.config.hidden_size)
    return min(timed(lambda: region.cosine_scores(model, direction)) for _ in range(rounds))


def editing(model: Any, rows: int, rounds: int) -> float:
    """Seconds to apply and undo a surgery of so many rows."""
    total = model.config.num_hidden_layers * model.config.intermediate_size
    chosen = torch.linspace(0, total - 1, rows).long()
    edit = Surgery.build(model, chosen, torch.randn(model.config.hidden_size), 1.0, row_norm=1.0)

    def run() -> None:
        with edit.applied(model, force=True):
            pass

    return min(timed(run) for _ in range(rounds))


def fit(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """Slope of log seconds over log size, with its 95 % interval."""
    line = stats.linregress(np.log(sizes), np.log(seconds))
    half = float(stats.t.ppf(0.975, len(sizes) - 2) * line.stderr)
    slope = float(line.slope)
    return {"exponent": slope, "low": slope - half, "high": slope + half}


def studies(rounds: int) -> dict[tuple[str, str], tuple[list[int], Cost]]:
    """What is measured: (operation, what grows) → sizes and the cost at a size."""
    fixed = llama()
    large = llama(layers=8, width=512, units=4096)
    return {
        ("read activations", "texts"): (
            [32, 64, 128, 256, 512],
            lambda n: reading(fixed, n, rounds),
        ),
        ("read activations", "layers"): (
            [2, 4, 8, 16, 32],
            lambda n: reading(llama(layers=n), 64, rounds),
        ),
        ("read activations", "width"): (
            [128, 256, 512, 1024],
            lambda n: reading(llama(width=n, units=n * 8 // 3), 64, rounds),
        ),
        ("score rows", "layers"): (
            [4, 8, 16, 32, 64],
            lambda n: scoring(llama(layers=n, units=4096), rounds),
        ),
        ("score rows", "width"): (
            [256, 512, 1024, 2048],
            lambda n: scoring(llama(layers=2, width=n, units=8192), rounds),
        ),
        ("score rows", "rows"): (
            [4096, 8192, 16384, 32768, 65536],
            lambda n: scoring(llama(layers=2, units=n), rounds),
        ),
        ("apply and undo", "rows"): (
            [1024, 2048, 4096, 8192, 16384, 32768],
            lambda n: editing(large, n, rounds),
        ),
    }


def draw(found: dict[tuple[str, str], dict[str, Any]], path: Path) -> None:
    """One panel for what grows, one line for an operation."""
    panels = list(dict.fromkeys(grows for _, grows in found))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.0))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in found))}
    for axis, grows in zip(axes, panels, strict=True):
        for (operation, what), each in found.items():
            if what != grows:
                continue
            axis.loglog(
                each["sizes"],
                each["seconds"],
                "o-",
                color=colours[operation],
                label=f"{operation}: {each['exponent']:.2f}",
            )
        axis.set_xlabel(grows)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("seconds")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, print a table, draw, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for (operation, grows), (sizes, cost) in studies(arguments.rounds).items():
        seconds = [cost(size) for size in sizes]
        found[operation, grows] = {"sizes": sizes, "seconds": seconds, **fit(sizes, seconds)}
    draw(found, RESULTS / "scaling.svg")
    report(
        "scaling",
        {"curves": [{"operation": o, "grows": g, **each} for (o, g), each in found.items()]},
        {
            f"{operation} over {grows}": f"exponent {each['exponent']:.2f} "
            f"[{each['low']:.2f}, {each['high']:.2f}]"
            for (operation, grows), each in found.items()
        },
    )


if __name__ == "__main__":
    main()

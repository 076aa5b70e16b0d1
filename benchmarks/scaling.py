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
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers as hf
from machine import RESULTS, report, timed
from scipy import stats

from surgery_lib.models import activations
from surgery_lib.report.style import CYCLE, MARKERS, WIDTH, save, style
from surgery_lib.surgery import Surgery, region

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


def draw(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    """One panel for what grows, one line for an operation; in the legend the fitted exponents."""
    style()
    panels = list(dict.fromkeys(grows for _, grows in found))
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 6.0))
    names = list(dict.fromkeys(name for name, _ in found))
    for axis, grows in zip(grid.flat, panels, strict=True):
        shown = {name: each for (name, what), each in found.items() if what == grows}
        for name, each in shown.items():
            place = names.index(name)
            axis.loglog(
                each["sizes"],
                each["seconds"],
                marker=MARKERS[place],
                color=CYCLE[place],
                label=f"{name}: {each['exponent']:.2f} [{each['low']:.2f}, {each['high']:.2f}]",
            )
        ends = sorted({size for each in shown.values() for size in each["sizes"]})[::2]
        axis.set_xticks(ends, [f"{size:,}" for size in ends], minor=False)
        axis.minorticks_off()
        axis.set(xlabel=grows, ylabel="seconds")
        axis.margins(y=0.35)
        axis.legend(fontsize=8, loc="upper left")
    figure.suptitle(
        "Cost against size, with the exponent of each fit and its 95 % interval",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    save(figure, RESULTS, "scaling")
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
    draw(found)
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

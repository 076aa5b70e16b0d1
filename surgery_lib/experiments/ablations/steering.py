"""Activations moved in place of weights, to compare with an edit at equal strength."""

from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib.baselines import tools
from surgery_lib.errors import UserError
from surgery_lib.experiments.ablations.bench import Bench
from surgery_lib.models import activations, layout
from surgery_lib.models.tokens import real_tokens
from surgery_lib.surgery.edit import normalised

TEXTS = 200  # with the behaviour, for the mean input of the gates


def gap(bench: Bench) -> float:
    """Distance of the two classes' mean states along the chosen direction, on training texts."""
    at = bench.layers.index(bench.chosen.layer)
    difference = tools.mean_difference(bench.states["train"], bench.labels["train"])[at]
    unit = bench.chosen.direction / bench.chosen.direction.norm()
    return float(difference @ unit)


def block_of(bench: Bench) -> int:
    """The block whose input is the chosen layer; for the last layer, the last block."""
    return min(bench.chosen.layer, len(layout.blocks(bench.model)) - 1)


def residual(
    model: nn.Module, block: int, direction: Tensor, shift: float
) -> AbstractContextManager[None]:
    """The model with `shift` times the unit direction added to a block's input, at every token."""
    vector = shift * direction / direction.norm()
    handle = tools.on_input(layout.blocks(model)[block], lambda hidden: hidden + vector.to(hidden))
    return tools.hooked([handle])


@contextmanager
def gates_shifted(bench: Bench, rows: Tensor, direction: Tensor) -> Any:
    """Each selected gate opened by a constant: what the edit adds to it on average.

    The edit adds step * (v . x) to a gate, x being the MLP's input; the constant has the mean of
    v . x over tokens of texts with the behaviour in place of v . x. UserError for mixtures.
    """
    model = bench.model
    if layout.is_mixture(model) or bench.surgery.matrix != "gate":
        raise UserError("gates of a mixture of experts cannot be shifted by a constant here")
    means = mean_inputs(bench, direction)
    all_rows = layout.weight_rows(model)
    sizes = [len(entry.weight) for entry in all_rows]
    pairs = []
    for number, local, _ in layout.split_by_matrix(sizes, rows):
        entry = all_rows[number]
        block = layout.blocks(model)[entry.block]
        share, shares = entry.place.part
        shift = torch.zeros(shares * sizes[number])
        shift[local + share * sizes[number]] = bench.step * means[entry.block]
        path = layout.mlp_of(block).gate.path.removesuffix(".weight")
        pairs.append((block.get_submodule(path), shift))
    with tools.all_biased(pairs):
        yield model


def mean_inputs(bench: Bench, direction: Tensor) -> list[float]:
    """Mean of v . x over tokens of texts with the behaviour, block by block; x enters the MLP.

    `direction` is (width,), or (blocks, width) with a v for every block.
    """
    blocks = layout.blocks(bench.model)
    modules = {str(n): layout.mlp_module(block) for n, block in enumerate(blocks)}
    sums = dict.fromkeys(modules, 0.0)
    units = normalised(direction).expand(len(blocks), -1)

    def visit(name: str, inputs: Tensor, lengths: Tensor, _texts: Tensor) -> None:
        real = real_tokens(lengths, inputs.shape[1])
        unit = units[int(name)].to(inputs.device)
        sums[name] += float((inputs.float() @ unit)[real].double().sum())

    texts = [example.text for example in bench.data.examples["train"] if example.label][:TEXTS]
    tokens = activations.read_inputs(bench.model, bench.tokenizer, texts, modules, visit)
    return [sums[name] / tokens for name in modules]

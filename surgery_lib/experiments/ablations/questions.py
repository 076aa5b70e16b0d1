"""The variants that answer each question: the paper's Tables 9 to 11, and what it leaves open."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery_lib.experiments.ablations import steering
from surgery_lib.experiments.ablations.bench import CHOSEN, Bench, Variant
from surgery_lib.experiments.ablations.material import (
    BLOCK_DIRECTIONS,
    DIRECTIONS,
    compared_layers,
)
from surgery_lib.models import layout
from surgery_lib.surgery import region
from surgery_lib.surgery.controls import changed

QUARTERS = {f"quarter {n + 1}": (n / 4, (n + 1) / 4) for n in range(4)}
FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STRENGTHS = (-5.0, -2.0, -1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
FACTORS = (0.5, 1.0, 2.0)
GAPS = (0.25, 0.5, 1.0, 2.0)
RANKINGS = {
    "cosine": "cosine (the paper)",
    "cosine_gain": "cosine with gain",
    "effect": "first-order effect",
}
LEVEL = ", same divergence"  # ends the name of a variant whose multiple `Bench.matched` has set


@dataclass(frozen=True)
class Question:
    """What is asked, which variants answer it, and how its figure's x axis is called."""

    asks: str
    variants: Callable[[Bench], Iterator[Variant]]
    axis: str = ""


def controls(bench: Bench) -> Iterator[Variant]:
    """Table 9's first part: another direction, other rows, aligned rows, with draws of chance."""
    rows, v = bench.rows(), bench.directions[CHOSEN]

    def one(
        name: str, rows: Tensor, along: Tensor, times: float = 1.0, draw: Any = None
    ) -> Variant:
        return Variant("controls", name, lambda: bench.edit(rows, along, times), draw=draw)

    def selected(select: region.Select, seed: int) -> Tensor:
        return bench.rows(select=select, seed=seed)

    def made(kind: str, draw: int = 0) -> tuple[Tensor, Tensor]:
        return changed(kind, rows, v, selected, draw)

    aligned, _ = made("aligned_rows")
    yield one("as chosen", rows, v)
    noise = [(bench.directions[f"random {n}"], bench.rows(f"random {n}")) for n in _draws(bench)]
    for draw, (direction, own) in enumerate(noise):
        chance, _ = made("random_rows", draw)
        # Each draw at the multiple at which it diverges as much as the chosen edit does.
        by_rows = _matched(bench, f"random rows {draw}", chance, v)
        by_noise = _matched(bench, f"random direction {draw}", own, direction)
        yield one("random direction, same rows", rows, direction, draw=draw)
        yield one("random direction, its own rows", own, direction, draw=draw)
        yield one(f"random direction{LEVEL}", own, direction, by_noise, draw)
        yield one("random rows, same step", chance, v, draw=draw)
        yield one(f"random rows{LEVEL}", chance, v, by_rows, draw)
    yield one("aligned rows, subtracted", aligned, -v)
    yield one("aligned rows, added", aligned, v)
    yield one("inverted direction", *made("inverted_direction"))


def _matched(bench: Bench, name: str, rows: Tensor, along: Tensor) -> float:
    return bench.matched(name, lambda times: bench.edit(rows, along, times))


def layers(bench: Bench) -> Iterator[Variant]:
    """Table 9: the layer that the probe is fitted on; not where each block has its direction."""
    if bench.blockwise:
        return
    for layer in bench.layers:
        v, name = bench.directions[f"layer {layer}"], f"layer {layer}"
        yield Variant(
            "layers", "probe of one layer", _edit(bench, bench.rows(name), v), x=float(layer)
        )


def depth(bench: Bench) -> Iterator[Variant]:
    """Table 9: quarters of the depth left out, with K refilled from the others and without."""
    v, rows = bench.directions[CHOSEN], bench.rows()
    for name, (start, stop) in QUARTERS.items():
        inside = region.depth_window(bench.model, start, stop)
        if bench.surgery.matrix == "gate" and bool(inside.any()):
            yield Variant("depth", f"without {name}", _edit(bench, rows[~inside[rows]], v))
            refilled = bench.rows(among=~inside)
            yield Variant("depth", f"without {name}, K refilled", _edit(bench, refilled, v))


def matrices(bench: Bench) -> Iterator[Variant]:
    """Table 11: as many rows of another matrix; a block's own direction is of its MLP's input."""
    v = bench.directions[CHOSEN]
    among = ("gate", "up") if bench.blockwise else layout.MATRICES

    def edit(matrix: str) -> AbstractContextManager[Any]:
        scores = region.cosine_scores(bench.model, v, matrix)
        rows = region.select(scores, min(len(bench.surgery.rows), len(scores)))
        return bench.edit(rows, v, matrix=matrix)

    for matrix in among:
        yield Variant("matrices", matrix, functools.partial(edit, matrix))


def row_counts(bench: Bench) -> Iterator[Variant]:
    """K from a thousandth to all rows, at the chosen step, and with the edit's size held."""
    v, total = bench.directions[CHOSEN], len(bench.scores[bench.rule, CHOSEN])
    share = len(bench.surgery.rows) / total
    others = (one for one in FRACTIONS if not math.isclose(one, share, rel_tol=0.01))
    for fraction in sorted({*others, share}):
        if round(fraction * total) < 1:
            continue
        rows = bench.rows(k=fraction)
        same = math.sqrt(share / fraction)
        yield Variant("row_counts", "same step", _edit(bench, rows, v), x=100 * fraction)
        yield Variant("row_counts", "same size", _edit(bench, rows, v, same), x=100 * fraction)


def strengths(bench: Bench) -> Iterator[Variant]:
    """Strength as a curve, both ways (Table 10)."""
    v, rows = bench.directions[CHOSEN], bench.rows()
    for times in STRENGTHS:
        edit = _edit(bench, rows, v, times)
        yield Variant("strengths", "chosen rows", edit, x=times)


def directions(bench: Bench) -> Iterator[Variant]:
    """W1, W1 − W0, logistic, mean difference, LDA: at the layer chosen and at the last.

    With a direction for every block: what each block reads along.
    """
    if bench.blockwise:
        for name in BLOCK_DIRECTIONS:
            rows, v = bench.rows(name), bench.directions[name]
            for times in FACTORS:
                yield Variant("directions", name, _edit(bench, rows, v, times), x=times)
            if not torch.equal(v, bench.directions[CHOSEN]):
                times = _matched(bench, name, rows, v)
                edit = _edit(bench, rows, v, times)
                yield Variant("directions", f"{name}{LEVEL}", edit, x=times)
        return
    for name, _, _, drawn in DIRECTIONS:
        for layer in compared_layers(bench):
            for draw in _draws(bench) if drawn else range(1):
                key = f"{name}, layer {layer}, draw {draw}"
                v, rows = bench.directions[key], bench.rows(key)
                for times in FACTORS if draw == 0 else (1.0,):
                    edit = _edit(bench, rows, v, times)
                    label = f"{name}, layer {layer}"
                    yield Variant("directions", label, edit, x=times, draw=draw)


def rankings(bench: Bench) -> Iterator[Variant]:
    """What rows are ranked by: the cosine, with the norm's gain, and the first-order effect."""
    v = bench.directions[CHOSEN]
    blockwise = {"cosine": "cosine", bench.rule: "first-order effect"}
    for ranking, label in (blockwise if bench.blockwise else RANKINGS).items():
        for times in FACTORS:

            def edit(ranking: str = ranking, times: float = times) -> AbstractContextManager[Any]:
                return bench.edit(bench.rows(ranking=ranking), v, times)

            yield Variant("rankings", label, edit, x=times)


def steered(bench: Bench) -> Iterator[Variant]:
    """Moving activations in place of weights, at equal strength in three senses."""
    rows, v = bench.rows(), bench.directions[CHOSEN]
    yield Variant("steering", "the edit", _edit(bench, rows, v))
    yield Variant(
        "steering", "same gates, constant shift", lambda: steering.gates_shifted(bench, rows, v)
    )
    gap = steering.gap(bench)
    block = steering.block_of(bench)

    def residual(times: float) -> AbstractContextManager[Any]:
        return steering.residual(bench.model, block, bench.chosen.direction, -times * gap)

    for times in GAPS:
        edit = functools.partial(residual, times)
        yield Variant("steering", "residual stream, in gaps", edit, x=times)
    same = bench.matched("steering", residual)
    yield Variant("steering", f"residual stream{LEVEL}", lambda: residual(same))


QUESTIONS: dict[str, Question] = {
    "controls": Question("Is it the direction, and is it the rows?", controls),
    "layers": Question("Which layer's probe?", layers, "layer of the probe"),
    "depth": Question("Which quarter of the depth matters?", depth),
    "matrices": Question("Which matrix?", matrices),
    "row_counts": Question("How many rows?", row_counts, "rows edited, % of all"),
    "strengths": Question("How strong?", strengths, "strength, in chosen strengths"),
    "directions": Question("Which direction?", directions, "strength, in chosen strengths"),
    "rankings": Question("What to rank rows by?", rankings, "strength, in chosen strengths"),
    "steering": Question("Is an edit more than steering?", steered, "shift, in gaps"),
}


def _draws(bench: Bench) -> range:
    return range(bench.draws)


def _edit(
    bench: Bench, rows: Tensor, v: Tensor, times: float = 1.0
) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: bench.edit(rows, v, times)

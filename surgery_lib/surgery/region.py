"""Which rows to edit: scores of all gate rows in one ranking, and what is selected from it.

The paper's rule (section 3.2) takes the K rows whose cosine with the direction is most negative,
over all layers together. Other scores are in `gains` and `effects`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.models import layout

Select = Literal["opposed", "aligned", "random", "all"]

# Rows are converted to float32 this many numbers at a time, so that a converted chunk stays in the
# processor's cache.
CHUNK_NUMBERS = 1 << 20


@torch.no_grad()
def cosine_scores(model: nn.Module, direction: Tensor, matrix: str = "gate") -> Tensor:
    """Cosine of every row with the direction: (rows,), float32. UserError on another width.

    `direction` is (width,), or (blocks, width): then each row is compared with that of its block.
    """
    found = layout.weight_rows(model, matrix)
    if direction.dim() == 2:
        return torch.cat([row_cosines([rows.weight], direction[rows.block]) for rows in found])
    return row_cosines([rows.weight for rows in found], direction)


def row_cosines(matrices: Sequence[Tensor], direction: Tensor) -> Tensor:
    """Cosine of every row of (rows, width) matrices with the direction, in float32: (all rows,)."""
    for weight in matrices:
        check_width(direction, weight.shape[1])
    unit = direction.float() / direction.float().norm()
    parts = []
    for rows in chunks(matrices):
        near = unit.to(rows.device)
        parts.append((rows @ near / rows.norm(dim=1).clamp_min(1e-30)).cpu())
    scores = torch.cat(parts)
    if not torch.isfinite(scores).all():
        raise UserError("the weights or the direction hold NaN or infinite values; load sound ones")
    return scores


@torch.no_grad()
def mean_row_norm(model: nn.Module, matrix: str = "gate") -> float:
    """Mean Euclidean norm of the rows of all layers: the unit of strength."""
    all_rows = layout.weight_rows(model, matrix)
    sums = norm_sums([rows.weight for rows in all_rows])
    return mean_norm(sums, sum(len(rows.weight) for rows in all_rows))


def norm_sums(matrices: Sequence[Tensor]) -> list[float]:
    """Sums of the Euclidean norms of the matrices' rows, chunk by chunk."""
    return [chunk.norm(dim=1).double().sum().item() for chunk in chunks(matrices)]


def mean_norm(sums: Sequence[float], rows: int) -> float:
    """The mean norm of so many rows, from the sums of their chunks."""
    mean = math.fsum(sums) / rows
    if not math.isfinite(mean):
        raise UserError("the weights hold NaN or infinite values; load sound ones")
    return mean


def select(
    scores: Tensor,
    k: int | float,
    *,
    select: Select = "opposed",
    seed: int = 0,
    among: Tensor | None = None,
) -> Tensor:
    """Indices of the selected rows, ascending: (K,), int64.

    `k` is a count, or a fraction of all rows where it is a float (the paper: 16,384 of 352,256,
    4.65 %). `opposed` takes the lowest scores, `aligned` the highest, `random` draws by `seed`,
    `all` takes everything; ties go to the lower index. `among` (rows,), bool, restricts the choice,
    to a window of the depth for example; K stays what it is of all rows.

    Raises:
        UserError: K is not at least 1 and at most the number of rows to choose from.
    """
    total = len(scores)
    if select != "all" and select not in _ORDERS:
        raise UserError(f"select = {select!r} is unknown; choose one of all, {', '.join(_ORDERS)}")
    allowed = torch.arange(total) if among is None else among.nonzero().flatten()
    if select == "all":
        return allowed
    count = row_count(k, total)
    if count > len(allowed):
        raise UserError(f"K = {count} rows are asked for, but there are {len(allowed)}; lower K")
    order = _ORDERS[select](scores[allowed], seed)
    return allowed[order[:count]].sort().values


def row_count(k: int | float, total: int) -> int:
    """K as a number of rows: an int is a count, a float a fraction of `total`."""
    if isinstance(k, float) and not 0 < k <= 1:
        raise UserError(
            f"K = {k} is no fraction; give a float in (0, 1], or a whole number of rows"
        )
    count = round(k * total) if isinstance(k, float) else int(k)
    if not 1 <= count <= total:
        raise UserError(
            f"K = {k} is {count} rows, but there are {total}; choose between 1 and {total}"
        )
    return count


_ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "opposed": lambda scores, seed: scores.argsort(stable=True),
    "aligned": lambda scores, seed: scores.neg().argsort(stable=True),
    "random": lambda scores, seed: torch.randperm(
        len(scores), generator=torch.Generator().manual_seed(seed)
    ),
}


def depth_window(model: nn.Module, start: float, stop: float) -> Tensor:
    """The rows of the blocks from `start` to `stop`, fractions of the depth: (rows,), bool."""
    depth = layout.row_blocks(model) / len(layout.blocks(model))
    return (depth >= start) & (depth < stop)


def describe(scores: Tensor, by_chance: Sequence[Tensor], rows: Tensor) -> dict[str, Any]:
    """The distribution of scores, that of random directions, and where the region begins."""
    everything = torch.cat([scores, *by_chance]).double().numpy()
    edges = np.histogram_bin_edges(everything, 80)
    counts = np.histogram(scores.double().numpy(), edges)[0]
    chance = np.mean([np.histogram(one.double().numpy(), edges)[0] for one in by_chance], axis=0)
    cuts = [threshold(one, len(rows)) for one in by_chance]
    return {
        "histogram": {"edges": edges, "counts": counts, "random": chance},
        "count": len(rows),
        "total": len(scores),
        "threshold": float(scores[rows].max()),
        "random_threshold": float(np.mean(cuts)),
        "random_thresholds": cuts,
    }


def threshold(scores: Tensor, count: int) -> float:
    """The score at or below which `count` rows lie."""
    return float(scores.kthvalue(count).values)


def marked(scores: Tensor, rows: Tensor) -> dict[str, Any]:
    """The distribution of scores, and of those of `rows` in the same bins."""
    edges = np.histogram_bin_edges(scores.double().numpy(), 60)
    counts, selected = (
        np.histogram(one.double().numpy(), edges)[0] for one in (scores, scores[rows])
    )
    share = len(rows) / len(scores)
    return {"edges": edges, "counts": counts, "selected": selected, "share": share}


def per_block(model: nn.Module, rows: Tensor, matrix: str = "gate") -> list[int]:
    """How many of the rows each block has."""
    counts = torch.bincount(
        layout.row_blocks(model, matrix)[rows], minlength=len(layout.blocks(model))
    )
    return [int(count) for count in counts]


def overlap(rows: Tensor, others: Tensor) -> float:
    """Share of `rows` that are in `others` too."""
    return float(torch.isin(rows, others).double().mean())


def chunks(matrices: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of all in float32, a part at a time; each part may overwrite the one before."""
    buffer = torch.empty(0, 0)
    for weight in matrices:
        size = min(chunk_rows(weight.shape[1]), len(weight))
        if weight.device.type != "cpu":
            yield weight.float()
        elif weight.dtype == torch.float32:
            yield from weight.split(size)
        else:
            # One buffer for all: fresh memory for every part costs several times the arithmetic.
            if buffer.shape != (size, weight.shape[1]):
                buffer = torch.empty(size, weight.shape[1])
            for part in weight.split(size):
                yield buffer[: len(part)].copy_(part)


def chunk_rows(width: int) -> int:
    """How many rows of a width are worked on at a time."""
    return max(1, CHUNK_NUMBERS // width)


def check_width(direction: Tensor, width: int) -> None:
    """UserError where a direction is not as wide as the model's hidden states."""
    if len(direction) != width:
        raise UserError(
            f"the direction is {len(direction)} wide, the model's hidden states {width}; "
            "use a probe trained on this model"
        )

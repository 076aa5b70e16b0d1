"""ProFS (Uppaal 2025): project the MLPs' outputs off a low-rank subspace of the behaviour.

At every block of the upper part, T = (X+ - X-)/2 over pairs of texts without and with the
behaviour, each the mean of the block's output over real tokens; T is centred by taking out the
first right singular vector of X+, and W_down <- (I - sum over i <= k of v_i v_i^T) W_down with the
first k right singular vectors of what is left.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange
from surgery_lib.models import layout

# The most directions of a block that the search may take, and the authors' for larger models.
MOST = 10


@dataclass(frozen=True, eq=False)
class FittedProfs(Read):
    """`subspaces` (blocks, k, width): orthonormal rows, the strongest first."""

    subspaces: Tensor
    parameters: int

    @contextmanager
    def applied(
        self, model: PreTrainedModel, strength: float, *, rank: float = 2, start: float = 0.5
    ) -> Iterator[Any]:
        """Down projections from depth `start` on, off the first `rank` directions."""
        count = len(self.subspaces)
        chosen = [
            rows
            for rows in layout.weight_rows(model, "down")
            if strength and rows.block >= round(start * count)
        ]
        with tools.restored([rows.weight for rows in chosen]):
            for rows in chosen:
                v = self.subspaces[rows.block, : max(1, round(rank))].to(rows.weight.device)
                exact = rows.weight.float()
                rows.weight.copy_(exact - strength * (exact @ v.t()) @ v)
            yield model

    def cost(self, *, start: float = 0.5, **_: Any) -> Cost:
        """The down projections of the edited blocks."""
        return self.price(round((1 - start) * self.parameters))


class Profs(Method[FittedProfs], name="profs", kind="weights"):
    """ProFS; strength 1 is the published projection."""

    # The authors: 2 directions for GPT-2 medium, 10 for larger models, the upper blocks.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.02, high=1.0, bounded=True),
        "rank": SearchRange(2, low=1, high=MOST, log=True),
        "start": SearchRange(0.5, low=0.3, high=0.9),
    }

    def learn(self, lesson: Lesson) -> FittedProfs:
        """Subspaces of all blocks from one pass; texts of both labels are paired in order."""
        states = lesson.states()[:, 1:]
        labels = torch.as_tensor(lesson.data.labels)
        plus, minus = states[labels == 0], states[labels == 1]
        pairs = min(len(plus), len(minus))
        subspaces = [
            subspace(plus[:pairs, block], minus[:pairs, block], MOST)
            for block in range(states.shape[1])
        ]
        return FittedProfs(
            subspaces=torch.stack(subspaces),
            parameters=sum(
                rows.weight.numel() for rows in layout.weight_rows(lesson.model, "down")
            ),
            **{**lesson.read(), "labels": 2 * pairs},
        )


def subspace(plus: Tensor, minus: Tensor, k: int) -> Tensor:
    """The first k directions (k, width) of pairs' states (pairs, width) each, centred by `plus`."""
    plus, minus = plus.double(), minus.double()
    difference = (plus - minus) / 2
    u = torch.linalg.svd(plus, full_matrices=False).Vh[0]
    difference = difference - torch.outer(difference @ u, u)
    return torch.linalg.svd(difference, full_matrices=False).Vh[:k].float()

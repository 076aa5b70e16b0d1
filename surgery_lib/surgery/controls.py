"""Edits of the same size that should not work (Model Surgery, Table 9): what each changes.

The only definition of controls: evaluation, ablations and the comparison of methods all take theirs
from `CONTROLS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib.profile import Controls
from surgery_lib.surgery import region
from surgery_lib.surgery.edit import Surgery, fingerprint

# Kind -> what it changes: which rows are selected, or which direction they move along.
CONTROLS: Mapping[str, Mapping[str, Any]] = {
    "random_direction": {"direction": "random"},
    "random_rows": {"select": "random"},
    "aligned_rows": {"select": "aligned"},
    "inverted_direction": {"direction": "inverted"},
}
# Rows that a word selects, as many as the edit has, drawn by a seed.
Selector = Callable[[region.Select, int], Tensor]


def random_direction(like: Tensor, seed: int) -> Tensor:
    """A Gaussian direction of the same norm, the control for the probe."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm() * like.norm()


def changed(
    kind: str, rows: Tensor, direction: Tensor, selected: Selector, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows and direction of a control of the edit that has these; `seed` where there is chance."""
    change = CONTROLS[kind]
    if "select" in change:
        return selected(change["select"], seed), direction
    if change["direction"] == "random":
        return rows, random_direction(direction, seed)
    return rows, -direction


def build(model: nn.Module, surgery: Surgery, settings: Controls) -> dict[str, list[Surgery]]:
    """The controls of one surgery, by kind: several draws where there is chance, else one.

    Rows and coefficients keep their number and size; `model` must be unedited.
    """

    def selected(select: region.Select, seed: int) -> Tensor:
        scores = region.cosine_scores(model, surgery.direction, surgery.matrix)
        return region.select(scores, len(surgery.rows), select=select, seed=seed)

    found: dict[str, list[Surgery]] = {}
    for kind in settings.kinds:
        draws = settings.random_seeds if "random" in CONTROLS[kind].values() else 1
        found[kind] = []
        for seed in range(draws):
            rows, along = changed(kind, surgery.rows, surgery.direction, selected, seed)
            made_for = fingerprint(model, rows, surgery.matrix)
            found[kind].append(replace(surgery, rows=rows, direction=along, fingerprint=made_for))
    return found

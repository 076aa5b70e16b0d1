"""Edits of the same size that should not work (Model Surgery, Table 9)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from surgery_lib.profile import Controls
from surgery_lib.surgery import region
from surgery_lib.surgery.edit import Surgery, fingerprint


def build(model: nn.Module, surgery: Surgery, settings: Controls) -> dict[str, list[Surgery]]:
    """The controls of one surgery, by kind: several draws where there is chance, else one.

    Rows and coefficients keep their number and size; `model` must be unedited.
    """
    found: dict[str, list[Surgery]] = {}
    for kind in settings.kinds:
        make, drawn = KINDS[kind]
        seeds = range(settings.random_seeds) if drawn else range(1)
        found[kind] = [_made(model, surgery, make(model, surgery, seed)) for seed in seeds]
    return found


def _made(model: nn.Module, surgery: Surgery, changes: dict[str, Any]) -> Surgery:
    rows = changes.get("rows", surgery.rows)
    return replace(surgery, fingerprint=fingerprint(model, rows, surgery.matrix), **changes)


def _other_rows(model: nn.Module, surgery: Surgery, select: region.Select, seed: int) -> Tensor:
    scores = region.cosine_scores(model, surgery.direction, surgery.matrix)
    return region.select(scores, len(surgery.rows), rule=select, seed=seed)


Change = Callable[[nn.Module, Surgery, int], dict[str, Any]]

# Kind: what it changes of the surgery, and whether it is drawn at random.
KINDS: dict[str, tuple[Change, bool]] = {
    "random_direction": (
        lambda model, surgery, seed: {
            "direction": region.random_direction(surgery.direction, seed)
        },
        True,
    ),
    "random_rows": (
        lambda model, surgery, seed: {"rows": _other_rows(model, surgery, "random", seed)},
        True,
    ),
    "aligned_rows": (
        lambda model, surgery, seed: {"rows": _other_rows(model, surgery, "aligned", seed)},
        False,
    ),
    "inverted_direction": (
        lambda model, surgery, seed: {"direction": -surgery.direction},
        False,
    ),
}

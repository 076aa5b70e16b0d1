"""What an edit's tensors must be, before anything is written with them, and a probe's."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgery_lib.errors import UserError

if TYPE_CHECKING:
    from surgery_lib.surgery.edit import Surgery
    from surgery_lib.surgery.probe import Probe


def check_edit(
    edit: "Surgery", total: int | None = None, width: int | None = None, blocks: int | None = None
) -> None:
    """UserError unless an edit's tensors fit one another and a model of these sizes."""
    if edit.rows.dim() != 1 or edit.coefficients.shape[:1] != edit.rows.shape:
        raise UserError(
            f"the surgery has {tuple(edit.rows.shape)} rows and {tuple(edit.coefficients.shape)} "
            "coefficients; a row has one of each: save it again"
        )
    if edit.coefficients.dim() != 1 or not torch.isfinite(edit.coefficients).all():
        raise UserError("the surgery's coefficients are not finite numbers; plan it again")
    check_rows(
        edit.rows, int(edit.rows.max()) + 1 if total is None and len(edit.rows) else total or 0
    )
    if width is None:
        width = edit.direction.shape[-1] if edit.direction.dim() else 0
        blocks = len(edit.direction) if edit.direction.dim() == 2 else None
    check_direction(edit.direction, width, blocks)


def patch_fault(edit: "Surgery", tensors: Mapping[str, Tensor], units: Sequence[str]) -> str | None:
    """What is wrong with a patch as it was read, if anything: its numbers, its unit, its about."""
    if isinstance(edit.strength, bool) or not isinstance(edit.strength, int | float):
        return "strength is no finite number"
    floats = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    sound = {
        "strength is no finite number": math.isfinite(edit.strength),
        "unit or about is of another form": edit.unit in units and isinstance(edit.about, dict),
        "numbers are of another type": floats == {"coefficients", "direction"},
    }
    return next((fault for fault, right in sound.items() if not right), None)


def probe_fault(probe: "Probe") -> str | None:
    """What is wrong with a probe as it was read, if anything: its vectors, numbers and names."""
    vectors = (probe.direction, probe.classifier)
    names = (probe.estimator, probe.behaviour, probe.pooling)
    sound = {
        "its two vectors differ in form": all(
            vector.shape == (vectors[0].numel(),) for vector in vectors
        ),
        "it is not finite": all(torch.isfinite(vector).all() for vector in vectors)
        and type(probe.bias) in (int, float)
        and abs(probe.bias) <= torch.finfo(torch.float32).max,  # false of NaN, too
        "its layer is no whole number": type(probe.layer) is int,
        "its names are no texts": all(isinstance(name, str) for name in names),
        "its metrics or start are of another form": all(
            isinstance(numbers, Mapping) for numbers in (probe.metrics, probe.start)
        ),
    }
    return next((fault for fault, right in sound.items() if not right), None)


def check_finite(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows; UserError where the edit has made one NaN, infinite or too large for `dtype`."""
    if not torch.isfinite(rows).all():
        raise UserError(f"the edit leaves numbers that {dtype} cannot hold; lower the strength")
    return rows


def check_rows(rows: Tensor, total: int) -> None:
    """UserError unless the sorted row numbers are some of `total`, each once."""
    if bool((rows[1:] < rows[:-1]).any()):
        raise UserError("the rows are not in ascending order; sort them, coefficients with them")
    if len(rows) == 0 or int(rows[0]) < 0 or int(rows[-1]) >= total:
        raise UserError(f"the selected rows must be some of the {total} that the model has")
    if len(rows.unique()) != len(rows):
        raise UserError("a row is selected twice; each may be edited once")


def check_direction(direction: Tensor, width: int, blocks: int | None = None) -> None:
    """UserError unless the direction is as wide as a row, finite and not zero.

    Where the number of blocks is given, one direction for each of them will do too.
    """
    several = blocks is not None and direction.shape == (blocks, width)
    if direction.shape != (width,) and not several:
        raise UserError(
            f"the direction has shape {tuple(direction.shape)}, the model's hidden states are "
            f"{width} wide; use a probe trained on this model"
        )
    norms = direction.float().norm(dim=-1)
    if not torch.isfinite(direction).all() or not bool((norms > 0).all()):
        raise UserError("the direction is zero or not finite; train the probe again")

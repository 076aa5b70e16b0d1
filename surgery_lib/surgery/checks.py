"""What an edit's tensors must be, before anything is written with them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgery_lib.errors import UserError

if TYPE_CHECKING:
    from surgery_lib.surgery.edit import Surgery


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

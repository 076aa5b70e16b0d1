"""The edit: rows of a matrix, each moved along a direction (Model Surgery, equation 3).

A surgery is a patch of kilobytes: row indices, what multiplies the direction in each row, and the
direction: one for the whole model, or one for every block. It can be applied, undone bit for bit,
used for the length of a `with` block, and saved.
"""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import region
from surgery_lib.surgery.checks import (
    check_direction,
    check_edit,
    check_finite,
    check_rows,
    patch_fault,
)

Unit = Literal["row_norm", "absolute"]

FORMAT = "model-surgery/1"
# Of a patch with a direction for every block: what reads only the first format refuses it.
BLOCKS_FORMAT = "model-surgery/2"
TENSORS = ("rows", "coefficients", "direction")
HEADERS = ("strength", "unit", "fingerprint", "matrix", "about")
# How much of each selected row the fingerprint reads: an edit changes a row in every column.
FINGERPRINT_COLUMNS = 16

# What each model has on it, outermost last, with the rows as they were.
_applied: "weakref.WeakKeyDictionary[nn.Module, list[tuple[Surgery, list[Tensor]]]]" = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False, repr=False)
class Surgery:
    """An edit of one model: row r becomes r + coefficient_r * direction of its block.

    `rows` (K,), int64, ascending, global row numbers of `matrix`; `coefficients` (K,), float32;
    `direction` (width,), or (blocks, width) where every block has its own, float32. `strength` and
    `unit` say how the coefficients came about, and `fingerprint` which model they were made for.
    """

    rows: Tensor
    coefficients: Tensor
    direction: Tensor
    strength: float
    unit: Unit
    fingerprint: str
    matrix: str = "gate"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Surgery({len(self.rows)} rows of {self.matrix}, strength {self.strength:g} "
            f"({self.unit}), for {self.fingerprint})"
        )

    @classmethod
    def build(
        cls,
        model: nn.Module,
        rows: Tensor,
        direction: Tensor,
        strength: float,
        *,
        unit: Unit = "row_norm",
        matrix: str = "gate",
        row_norm: float | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> "Surgery":
        """Plan an edit of `model`.

        `direction` is (width,), or (blocks, width) with one for every block.
        `unit="row_norm"`: each direction is normalised, and strength 1 moves a row by the mean norm
        of all rows (`row_norm`, measured where it is not given). `unit="absolute"` is the paper's
        strength times the direction as it is.

        Raises:
            UserError: A direction of another width or not finite, rows that do not exist, and a
                strength that is not finite.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64).cpu().sort().values
        check_rows(rows, layout.total_rows(model, matrix))
        check_direction(direction, layout.hidden_width(model), len(layout.blocks(model)))
        if row_norm is None:
            row_norm = region.mean_row_norm(model, matrix) if unit == "row_norm" else 1.0
        made_for = fingerprint(model, rows, matrix)
        return cls.planned(rows, direction, strength, unit, matrix, row_norm, made_for, about)

    @classmethod
    def planned(
        cls,
        rows: Tensor,
        direction: Tensor,
        strength: float,
        unit: Unit,
        matrix: str,
        row_norm: float,
        fingerprint: str,
        about: Mapping[str, Any] | None = None,
    ) -> "Surgery":
        """An edit of rows already checked, by the units that `build` explains."""
        if not math.isfinite(strength):
            raise UserError(f"strength {strength} is not finite; give a number")
        direction = direction.detach().float().cpu()
        relative = unit == "row_norm"
        coefficient = strength * row_norm if relative else strength
        return cls(
            rows=rows,
            coefficients=torch.full((len(rows),), coefficient, dtype=torch.float32),
            direction=normalised(direction) if relative else direction,
            strength=strength,
            unit=unit,
            fingerprint=fingerprint,
            matrix=matrix,
            about=dict(about or {}),
        )

    @contextmanager
    def applied(self, model: nn.Module, *, force: bool = False) -> Iterator[nn.Module]:
        """The model with the edit, for the length of the `with` block; every bit restored after."""
        self.apply(model, force=force)
        try:
            yield model
        finally:
            self.undo(model)

    @torch.no_grad()
    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """Edit the model in place.

        Raises:
            UserError: The model is not the one that the surgery was made for, or already has it;
                `force=True` edits all the same.
        """
        applied = _applied.setdefault(model, [])
        if not force:
            if any(surgery is self for surgery, _ in applied):
                raise UserError(
                    "this surgery is already applied to this model; undo it first, or pass "
                    "force=True to apply it twice"
                )
            if fingerprint(model, self.rows, self.matrix) != self.fingerprint:
                raise UserError(
                    "this surgery was made for another model, or this one is already edited; load "
                    "the original, or pass force=True to apply it all the same"
                )
        sizes = layout.total_rows(model, self.matrix), layout.hidden_width(model)
        check_edit(self, *sizes, len(layout.blocks(model)))
        # Everything is computed before anything is written; what was is kept before it is gone.
        parts = list(self._parts(model))
        kept = [weight[local] for _, weight, local, _ in parts]  # copies: the index is a tensor
        after = [
            check_finite(
                moved(before, self.coefficients[part], self.direction_of(block)), before.dtype
            )
            for before, (block, _, _, part) in zip(kept, parts, strict=True)
        ]
        record = (self, kept)
        try:
            applied.append(record)
            for (_, weight, local, _), rows in zip(parts, after, strict=True):
                weight[local] = rows
        except BaseException:  # Ctrl-C too: no model is left half edited
            _restore(parts, kept)
            if applied and applied[-1] is record:
                applied.pop()
            raise

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Restore every bit. UserError unless this is the last surgery applied to the model."""
        applied = _applied.get(model, [])
        if not applied or applied[-1][0] is not self:
            raise UserError(
                "this surgery is not the last one applied to this model; undo the later ones first"
                if any(surgery is self for surgery, _ in applied)
                else "this surgery is not applied to this model, so there is nothing to undo"
            )
        kept, parts = applied[-1][1], list(self._parts(model))
        if len(parts) != len(kept) or any(
            part[1].dtype != before.dtype for part, before in zip(parts, kept, strict=True)
        ):
            raise UserError(
                f"the model was converted since the surgery was applied (its rows were "
                f"{kept[0].dtype}); convert it back, or load it again"
            )
        # Forgotten only when it is back: after an interruption, undo can be called again.
        _restore(parts, kept)
        applied.pop()

    def direction_of(self, block: int) -> Tensor:
        """The direction (width,) along which a block's rows move."""
        return self.direction if self.direction.dim() == 1 else self.direction[block]

    def save(self, folder: Path | str) -> None:
        """Write the patch, `surgery.safetensors`, into a folder."""
        header = {
            "format": FORMAT if self.direction.dim() == 1 else BLOCKS_FORMAT,
            "strength": files.dumps(self.strength),
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "matrix": self.matrix,
            "about": files.dumps(self.about),
        }
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors["rows"] = self.rows.to(torch.int32)
        files.write_tensors(Path(folder) / "surgery.safetensors", tensors, header)

    @classmethod
    def load(cls, folder: Path | str) -> "Surgery":
        """Read a patch. UserError where the folder holds none, or one that is damaged."""
        path = Path(folder) / "surgery.safetensors"
        tensors, header = files.read_tensors(path), files.read_metadata(path)
        if header.get("format") not in (FORMAT, BLOCKS_FORMAT):
            raise UserError(
                f"{path} is no surgery of format {FORMAT} or {BLOCKS_FORMAT}; save it again"
            )
        held = {**tensors, **header}
        if lacking := [name for name in (*TENSORS, *HEADERS) if name not in held]:
            raise UserError(f"{path} has no {lacking[0]}; save the surgery again")
        edit = cls(
            rows=tensors["rows"].long(),
            coefficients=tensors["coefficients"],
            direction=tensors["direction"],
            strength=files.loads(header["strength"], f"{path}, strength"),
            unit=header["unit"],  # type: ignore[arg-type]
            fingerprint=header["fingerprint"],
            matrix=header["matrix"],
            about=files.loads(header["about"], f"{path}, about"),
        )
        if fault := patch_fault(edit, tensors, get_args(Unit)):
            raise UserError(f"{path}: its {fault}; save the surgery again")
        layout.check_matrix(edit.matrix)
        check_edit(edit)
        return edit

    def _parts(self, model: nn.Module) -> Iterator[tuple[int, Tensor, Tensor, slice]]:
        """Every matrix that is touched: block, view, the rows in it, and which of ours they are."""
        found = layout.weight_rows(model, self.matrix)
        sizes = [len(rows.weight) for rows in found]
        for number, local, part in layout.split_by_matrix(sizes, self.rows):
            weight = found[number].weight
            yield found[number].block, weight, local.to(weight.device), part


def normalised(direction: Tensor) -> Tensor:
    """A direction (width,), or each of several (blocks, width), with norm 1."""
    if direction.dim() == 1:
        return direction / direction.norm()
    return direction / direction.norm(dim=1, keepdim=True)


def moved(before: Tensor, coefficients: Tensor, direction: Tensor) -> Tensor:
    """Rows (n, width) after the edit, each moved by its coefficient (n,) times the direction."""
    step = coefficients.to(before.device)[:, None] * direction.to(before.device)
    # In float32, rounded once: a bfloat16 sum of bfloat16 terms would round three times.
    # Where the step is zero the number is kept as it is: x + 0 would turn -0 into 0.
    return torch.where(step != 0, (before.float() + step).to(before.dtype), before)


@torch.no_grad()
def fingerprint(model: nn.Module, rows: Tensor, matrix: str = "gate") -> str:
    """A hash of the shapes of all matrices and of the beginning of the selected rows."""
    found = layout.weight_rows(model, matrix)
    sizes = [len(entry.weight) for entry in found]
    samples = [
        found[number].weight[local.to(found[number].weight.device), :FINGERPRINT_COLUMNS]
        for number, local, _ in layout.split_by_matrix(sizes, rows)
    ]
    return hash_samples(matrix, sizes, found[0].weight.shape[1], samples)


def hash_samples(matrix: str, sizes: Sequence[int], width: int, samples: Sequence[Tensor]) -> str:
    """The fingerprint of matrices of so many rows each, by samples (n, columns) of those touched.

    Names are left out and numbers are compared in float32: a model in memory, in its own dtype or
    in float32, and its files on disk are one.
    """
    return files.fingerprint(
        [matrix, list(sizes), width], *(part.float().cpu() for part in samples)
    )


def _restore(parts: Sequence[tuple[int, Tensor, Tensor, slice]], kept: Sequence[Tensor]) -> None:
    for (_, weight, local, _), before in zip(parts, kept, strict=True):
        weight[local] = before

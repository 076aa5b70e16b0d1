"""The edit: rows of a matrix, each moved along one direction (Model Surgery, equation 3).

A surgery is a patch of kilobytes: row indices, what multiplies the direction in each row, and the
direction. It can be applied, undone bit for bit, used for the length of a `with` block, and saved.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery_lib import files, layout, region
from surgery_lib.errors import UserError

Unit = Literal["row_norm", "absolute"]

FORMAT = "model-surgery/1"
# How much of each selected row the fingerprint reads: an edit changes a row in every column.
FINGERPRINT_COLUMNS = 16

# What each model has on it, outermost last, with the rows as they were.
_applied: "weakref.WeakKeyDictionary[nn.Module, list[tuple[Surgery, list[Tensor]]]]" = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False)
class Surgery:
    """An edit of one model: row r becomes r + coefficient_r * direction.

    `rows` (K,), int64, ascending, global row numbers of `matrix`; `coefficients` (K,), float32;
    `direction` (width,), float32. `strength` and `unit` say how the coefficients came about, and
    `fingerprint` which model they were made for.
    """

    rows: Tensor
    coefficients: Tensor
    direction: Tensor
    strength: float
    unit: Unit
    fingerprint: str
    matrix: str = "gate"
    about: Mapping[str, Any] = field(default_factory=dict)

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

        `unit="row_norm"`: the direction is normalised, and strength 1 moves a row by the mean norm
        of all rows (`row_norm`, measured where it is not given). `unit="absolute"` is the paper's
        strength times the direction as it is.

        Raises UserError for a direction of another width or not finite, rows that do not exist, and
        a strength that is not finite.
        """
        direction = direction.detach().float().cpu()
        rows = torch.as_tensor(rows, dtype=torch.int64).cpu().sort().values
        _check(model, rows, direction, strength, matrix)
        if unit == "row_norm":
            direction = direction / direction.norm()
            row_norm = region.mean_row_norm(model, matrix) if row_norm is None else row_norm
            coefficient = strength * row_norm
        else:
            coefficient = strength
        return cls(
            rows=rows,
            coefficients=torch.full((len(rows),), coefficient, dtype=torch.float32),
            direction=direction,
            strength=strength,
            unit=unit,
            fingerprint=fingerprint(model, rows, matrix),
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

        Raises UserError where the model is not the one that the surgery was made for, or already
        has it; `force=True` edits all the same.
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
        kept = []
        for weight, local, part in self._parts(model):
            before = weight[local]
            kept.append(before.clone())
            step = self.coefficients[part].to(weight.device)[:, None] * self.direction.to(
                weight.device
            )
            # In float32, rounded once: a bfloat16 sum of bfloat16 terms would round three times.
            # Where the step is zero the row is kept as it is: x + 0 would turn -0 into 0.
            edited = (before.float() + step).to(weight.dtype)
            weight[local] = torch.where(step != 0, edited, before)
        applied.append((self, kept))

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
        _, kept = applied.pop()
        for (weight, local, _part), before in zip(self._parts(model), kept, strict=True):
            weight[local] = before

    def save(self, folder: Path | str) -> None:
        """Write the patch, `surgery.safetensors`, into a folder."""
        header = {
            "format": FORMAT,
            "strength": files.dumps(self.strength),
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "matrix": self.matrix,
            "about": files.dumps(self.about),
        }
        tensors = {
            "rows": self.rows.to(torch.int32),
            "coefficients": self.coefficients,
            "direction": self.direction,
        }
        files.write_tensors(Path(folder) / "surgery.safetensors", tensors, header)

    @classmethod
    def load(cls, folder: Path | str) -> "Surgery":
        """Read a patch. UserError where the folder holds none, or one that is damaged."""
        path = Path(folder) / "surgery.safetensors"
        tensors = files.read_tensors(path)
        header = files.read_metadata(path)
        if header.get("format") != FORMAT:
            raise UserError(f"{path} is not a surgery of format {FORMAT}; save it again")
        return cls(
            rows=tensors["rows"].long(),
            coefficients=tensors["coefficients"],
            direction=tensors["direction"],
            strength=files.loads(header["strength"]),
            unit=header["unit"],  # type: ignore[arg-type]
            fingerprint=header["fingerprint"],
            matrix=header["matrix"],
            about=files.loads(header["about"]),
        )

    def _parts(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor, slice]]:
        """Every matrix that is touched: its view, the rows in it, and which of ours they are."""
        matrices = [rows.weight for rows in layout.weight_rows(model, self.matrix)]
        sizes = [len(weight) for weight in matrices]
        for number, local, part in layout.split_by_matrix(sizes, self.rows):
            yield matrices[number], local.to(matrices[number].device), part


@torch.no_grad()
def fingerprint(model: nn.Module, rows: Tensor, matrix: str = "gate") -> str:
    """A hash of the shapes of all matrices and of the beginning of the selected rows.

    Values are compared in float32, so that a model loaded in its own dtype and in float32 is one.
    """
    found = layout.weight_rows(model, matrix)
    sizes = [len(entry.weight) for entry in found]
    samples = [
        found[number]
        .weight[local.to(found[number].weight.device), :FINGERPRINT_COLUMNS]
        .float()
        .cpu()
        for number, local, _ in layout.split_by_matrix(sizes, rows)
    ]
    shapes = [[entry.parameter, *entry.weight.shape] for entry in found]
    return files.fingerprint(shapes, *samples)


def _check(model: nn.Module, rows: Tensor, direction: Tensor, strength: float, matrix: str) -> None:
    width = layout.hidden_width(model)
    if direction.shape != (width,):
        raise UserError(
            f"the direction has shape {tuple(direction.shape)}, the model's hidden states are "
            f"{width} wide; use a probe trained on this model"
        )
    if not torch.isfinite(direction).all() or not float(direction.norm()) > 0:
        raise UserError("the direction is zero or not finite; train the probe again")
    if not torch.isfinite(torch.tensor(strength)):
        raise UserError(f"strength {strength} is not finite; give a number")
    total = layout.total_rows(model, matrix)
    if len(rows) == 0 or int(rows[0]) < 0 or int(rows[-1]) >= total:
        raise UserError(f"the selected rows must be some of the {total} that the model has")
    if len(rows.unique()) != len(rows):
        raise UserError("a row is selected twice; each may be edited once")

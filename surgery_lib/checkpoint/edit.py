"""Surgery on a checkpoint's files, without loading the model.

Only headers and the selected rows are read; the shards are copied as the file system does it best
and the rows are written in place. The result is bit for bit what applying the surgery to the model,
loaded in the dtype of its files, and saving it would give.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from surgery_lib import surgery
from surgery_lib.checkpoint import card as cards
from surgery_lib.checkpoint import copying, undo
from surgery_lib.checkpoint.shards import Checkpoint, Matrix, mapped
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import FINGERPRINT_COLUMNS, Surgery, Unit, region
from surgery_lib.surgery.checks import check_edit, check_finite

# How much of a mapped matrix is looked at before its pages are given back.
PIECE_BYTES = 1 << 26
# The kernel maps this much around a page that is touched.
FAULT_BYTES = 1 << 16


def operate(
    source: Path | str,
    edit: Surgery,
    destination: Path | str,
    *,
    force: bool = False,
    card: str | None = None,
    keep: bool = False,
    progress: bool = True,
) -> Path:
    """Write an edited copy of a checkpoint; returns its folder.

    `card` is Markdown about measured effects for the model card, README.md; the parent's card is
    kept as README.parent.md. With `keep` the copy carries the patch and the rows as they were, in a
    folder of their own, so that `undo.undo` can restore the source bit for bit. Until everything is
    written and on the disk, the copy lies in a hidden folder beside `destination`, without config;
    what an interrupted call left there is removed by the next. The source is only read.

    Raises:
        UserError: The destination exists, the source is not whole, quantized, not safetensors or of
            an unknown layout, the disk is too full, or the surgery was made for another model
            (`force=True` edits all the same).
    """
    if "\0" in str(destination):
        raise UserError(f"{str(destination)!r} is no path; correct it")
    destination = Path(destination).absolute()
    if destination.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(f"{destination} lies inside the source; choose a folder outside it")
    checkpoint = Checkpoint.open(source)
    matrices = checkpoint.matrices(edit.matrix)
    total = sum(matrix.rows for matrix in matrices)
    check_edit(edit, total, checkpoint.width, checkpoint.depth)
    copying.check_free(destination)
    if not force and fingerprint(checkpoint, edit.rows, edit.matrix) != edit.fingerprint:
        raise UserError(
            "this surgery was made for another model, or this checkpoint is already edited; give "
            "the original, or pass force=True to edit it all the same"
        )
    with copying.workplace(destination) as folder:
        copying.copy_shards(checkpoint.shards, folder, progress)
        _edit(checkpoint, matrices, edit, folder, progress)
        cards.write(checkpoint, edit, total, folder, card)
        copying.copy_others(checkpoint.folder, folder)
        if keep:
            undo.keep_rows(checkpoint, matrices, edit, folder)
    return destination


def plan(
    source: Path | str,
    direction: Tensor,
    k: int | float,
    strength: float,
    *,
    select: region.Select = "opposed",
    seed: int = 0,
    unit: Unit = "row_norm",
    matrix: str = "gate",
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Surgery:
    """Plan an edit from the files alone: `region.select` and `Surgery.build` in one pass.

    Raises UserError as these do, and for a source that `operate` would refuse.
    """
    checkpoint = Checkpoint.open(source)
    scores, row_norm = _measure(checkpoint, direction, matrix, progress)
    rows = region.select(scores, k, select=select, seed=seed)
    made_for = fingerprint(checkpoint, rows, matrix)
    return Surgery.planned(rows, direction, strength, unit, matrix, row_norm, made_for, about)


def fingerprint(checkpoint: Checkpoint, rows: Tensor, matrix: str = "gate") -> str:
    """What `surgery.fingerprint` gives for the model that these files hold."""
    matrices = checkpoint.matrices(matrix)
    sizes = [one.rows for one in matrices]
    samples = []
    for number, local, _ in layout.split_by_matrix(sizes, rows):
        with mapped(matrices[number], checkpoint.width) as mapping:
            parts = []
            for piece in local.split(PIECE_BYTES // FAULT_BYTES):
                parts.append(mapping.view[piece, :FINGERPRINT_COLUMNS])
                mapping.release()
            samples.append(torch.cat(parts))
    return surgery.hash_samples(matrix, sizes, checkpoint.width, samples)


@torch.no_grad()
def _measure(
    checkpoint: Checkpoint, direction: Tensor, matrix: str, progress: bool
) -> tuple[Tensor, float]:
    """Cosine of every row with the direction (rows,), and the mean norm of a row."""
    surgery.check_direction(direction, checkpoint.width)
    scores, norms = [], []
    # Whole chunks of `region`, so that the sums are the same to the last bit.
    chunk = region.chunk_rows(checkpoint.width)
    piece = chunk * max(1, PIECE_BYTES // (chunk * checkpoint.width * 4))
    matrices = checkpoint.matrices(matrix)
    for one in tqdm(matrices, desc="reading rows", disable=not progress):
        with mapped(one, checkpoint.width) as mapping:
            for rows in mapping.view.split(piece):
                scores.append(region.row_cosines([rows], direction))
                norms.extend(region.norm_sums([rows]))
                mapping.release()
    return torch.cat(scores), region.mean_norm(norms, sum(one.rows for one in matrices))


@torch.no_grad()
def _edit(
    checkpoint: Checkpoint, matrices: list[Matrix], edit: Surgery, folder: Path, progress: bool
) -> None:
    sizes = [matrix.rows for matrix in matrices]
    parts = list(layout.split_by_matrix(sizes, edit.rows))
    for number, local, part in tqdm(parts, desc="editing rows", disable=not progress):
        copy = matrices[number].in_folder(folder)
        coefficients, direction = edit.coefficients[part], edit.direction_of(copy.block)
        with mapped(copy, checkpoint.width, write=True) as mapping:
            for rows, columns in _pieces(mapping.view, local):
                view = mapping.view[:, columns]
                view[local[rows]] = check_finite(
                    surgery.moved(view[local[rows]], coefficients[rows], direction[columns]),
                    view.dtype,
                )
                mapping.release()


def _pieces(view: Tensor, local: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (selected rows, columns) so that what is touched of the file at once stays small."""
    if view.stride(1) == 1:
        step = max(1, PIECE_BYTES // (view.shape[1] * view.element_size() + FAULT_BYTES))
        for start in range(0, len(local), step):
            yield slice(start, start + step), slice(None)
    else:  # a column of the view lies together in the file
        step = max(1, PIECE_BYTES // (view.stride(1) * view.element_size()))
        for start in range(0, view.shape[1], step):
            yield slice(None), slice(start, start + step)

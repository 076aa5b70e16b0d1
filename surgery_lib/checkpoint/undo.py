"""An edited checkpoint on disk, back to the bit: it carries the rows as they were before the edit.

They lie in `surgery/` inside the checkpoint, with the patch, so that what reads all safetensors of
a checkpoint's own folder does not take them for weights.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from surgery_lib import files, surgery
from surgery_lib.checkpoint import copying
from surgery_lib.checkpoint.shards import Checkpoint, Matrix, mapped
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import Surgery
from surgery_lib.surgery.checks import check_edit

KEPT = "surgery"
ROWS = "rows.safetensors"


def keep_rows(source: Checkpoint, matrices: Sequence[Matrix], edit: Surgery, folder: Path) -> None:
    """Write the patch, and the source's rows that it moves, into `folder`/surgery."""
    # What an earlier edit of the same checkpoint left undoes that one, not this.
    shutil.rmtree(folder / KEPT, ignore_errors=True)
    edit.save(folder / KEPT)
    rows = {}
    for number, local, _ in layout.split_by_matrix([one.rows for one in matrices], edit.rows):
        with mapped(matrices[number], source.width) as mapping:
            rows[str(number)] = mapping.view[local].clone()
    files.write_tensors(folder / KEPT / ROWS, rows)


def undo(edited: Path | str, destination: Path | str, *, progress: bool = True) -> Path:
    """Write the checkpoint that `operate(..., keep=True)` edited as it was; returns its folder.

    Every row must still be what the edit made of it, so that the result is the source's bits and
    nothing else. `edited` is only read, and an interrupted call leaves nothing.

    Raises:
        UserError: The checkpoint does not carry its rows, or was changed since.
    """
    edited, destination = Path(edited), Path(destination).absolute()
    if not (edited / KEPT / ROWS).is_file():
        raise UserError(
            f"{edited} does not carry the rows as they were (no {KEPT}/{ROWS}); take the original "
            "model, or edit it again with `model-surgery apply`"
        )
    if destination.resolve().is_relative_to(edited.resolve()):
        raise UserError(f"{destination} lies inside the source; choose a folder outside it")
    checkpoint = Checkpoint.open(edited)
    edit = Surgery.load(edited / KEPT)
    before = files.read_tensors(edited / KEPT / ROWS)
    matrices = checkpoint.matrices(edit.matrix)
    sizes = [matrix.rows for matrix in matrices]
    check_edit(edit, sum(sizes), checkpoint.width, checkpoint.depth)
    copying.check_free(destination)
    with copying.workplace(destination) as folder:
        copying.copy_shards(checkpoint.shards, folder, progress)
        for number, local, part in layout.split_by_matrix(sizes, edit.rows):
            copy, rows = matrices[number].in_folder(folder), before.get(str(number))
            with mapped(copy, checkpoint.width, write=True) as mapping:
                now = mapping.view[local]
                same = rows is not None and (rows.shape, rows.dtype) == (now.shape, now.dtype)
                if same and rows is not None:
                    direction = edit.direction_of(copy.block)
                    moved = surgery.moved(rows, edit.coefficients[part], direction)
                    same = torch.equal(moved, now)
                if not same or rows is None:
                    raise UserError(
                        f"{edited} was changed since the surgery was applied; take the original"
                    )
                mapping.view[local] = rows
        copying.copy_others(checkpoint.folder, folder)
        _restore_cards(folder)
        shutil.rmtree(folder / KEPT)
    return destination


def _restore_cards(folder: Path) -> None:
    """The parent's card in place of the edited checkpoint's, which copying has moved away."""
    (folder / "README.parent.md").unlink(missing_ok=True)
    depth = 2
    while (card := folder / f"README{'.parent' * depth}.md").is_file():
        card.rename(folder / f"README{'.parent' * (depth - 2)}.md")
        depth += 1

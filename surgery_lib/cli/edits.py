"""`apply`, `undo`, `inspect`: a patch on a checkpoint's files, off them again, and what it is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery_lib.cli.options import Model, Out, Patch, read_patch


def apply(model: Model, patch: Patch, out: Out) -> None:
    """Write the edited model as an ordinary checkpoint, which `undo` can take back."""
    edit = read_patch(patch)
    from surgery_lib import checkpoint, models

    checkpoint.operate(models.snapshot(model), edit, out, keep=True)
    typer.echo(f"the edited model is in {out}; `model-surgery undo {out}` takes the edit out")


def undo(
    edited: Annotated[Path, typer.Argument(help="folder that `apply` wrote")], out: Out
) -> None:
    """Write the checkpoint as it was before `apply`, bit for bit."""
    from surgery_lib.checkpoint.undo import undo

    undo(edited, out)
    typer.echo(f"the model as it was is in {out}")


def inspect(patch: Patch) -> None:
    """Say what a patch holds."""
    from surgery_lib import files

    surgery = read_patch(patch)
    facts: dict[str, Any] = {
        "matrix": surgery.matrix,
        "rows": len(surgery.rows),
        "width": surgery.direction.shape[-1],
        "directions": len(surgery.direction) if surgery.direction.dim() == 2 else 1,
        "strength": surgery.strength,
        "unit": surgery.unit,
        "fingerprint": surgery.fingerprint,
        "about": surgery.about,
    }
    typer.echo(files.dumps(facts, indent=1))

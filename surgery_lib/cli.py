"""`model-surgery`: find, apply, inspect and undo an edit from the terminal.

The same library as the notebooks use; what it refuses it says in one line, with exit code 2.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery_lib import files
from surgery_lib.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find a behaviour's direction in a language model and edit it out of the weights.",
)
Texts = Annotated[Path, typer.Option(help="a text a line, .csv or .jsonl with a column text")]


@app.command()
def find(
    model: Annotated[str, typer.Argument(help="hub id, folder, or embedded:patient")],
    positive: Texts,
    negative: Texts,
    prompts: Annotated[Path | None, typer.Option(help="what provokes it, one a line")] = None,
    profile: Annotated[str | None, typer.Option(help="says what to search")] = None,
    out: Annotated[Path, typer.Option(help="folder for patch and reproduce.json")] = Path(
        "my-surgery"
    ),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or auto")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    perplexity_rise: Annotated[float | None, typer.Option(help="budget, relative")] = None,
    context_kl: Annotated[float | None, typer.Option(help="budget, nats in context")] = None,
    seed: int = 0,
) -> None:
    """Search an edit within a budget of damage, print before and after, write the patch."""
    # Imported late: help and refusals answer at once.
    from surgery_lib.models import load_model, resolved_revision
    from surgery_lib.profile import load_profile
    from surgery_lib.selection.find import BUDGET, find_surgery

    shown, absent = _texts(positive), _texts(negative)
    asked = _texts(prompts) if prompts is not None else None
    settings = load_profile(profile) if profile else None
    limits = {"perplexity_rise": perplexity_rise, "context_kl": context_kl}
    changed = {name: value for name, value in limits.items() if value is not None}
    base = settings.budget if settings else BUDGET
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    found = find_surgery(
        loaded,
        tokenizer,
        shown,
        absent,
        prompts=asked,
        budget=base.model_copy(update=changed),
        profile=settings,
        seed=seed,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(found.table())
    files.write_json(out / "found.json", found.as_dict())
    if found.surgery is None:
        raise UserError(
            f"no patch was written; the front that was found is in {out / 'found.json'}"
        )
    found.surgery.save(out)
    record = {
        "model": model,
        "revision": resolved_revision(loaded),
        "dtype": dtype,
        "seed": seed,
        "inputs": {str(path): files.sha256(path) for path in (positive, negative, prompts) if path},
        "patch": files.sha256(out / "surgery.safetensors"),
    }
    files.write_json(out / "reproduce.json", record)
    typer.echo(f"patch, found.json and reproduce.json are in {out}")


@app.command()
def apply(
    model: Annotated[str, typer.Argument(help="the model that the patch was made for")],
    patch: Annotated[Path, typer.Argument(help="folder with surgery.safetensors")],
    out: Annotated[Path, typer.Option(help="folder of the edited checkpoint; must not exist")],
) -> None:
    """Write the edited model as an ordinary checkpoint."""
    from surgery_lib import checkpoint, models
    from surgery_lib.surgery import Surgery

    checkpoint.operate(models.snapshot(model), Surgery.load(patch), out)
    typer.echo(f"the edited model is in {out}")


@app.command()
def inspect(patch: Annotated[Path, typer.Argument(help="folder with surgery.safetensors")]) -> None:
    """Say what a patch holds."""
    from surgery_lib.surgery import Surgery

    surgery = Surgery.load(patch)
    facts: dict[str, Any] = {
        "matrix": surgery.matrix,
        "rows": len(surgery.rows),
        "width": len(surgery.direction),
        "strength": surgery.strength,
        "unit": surgery.unit,
        "fingerprint": surgery.fingerprint,
        "about": surgery.about,
    }
    typer.echo(files.dumps(facts, indent=1))


def _texts(path: Path) -> list[str]:
    """The texts of a user's file."""
    from surgery_lib.data.load import read_table

    if not path.is_file():
        raise UserError(f"there is no file {path}; check the path")
    try:
        rows = read_table(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable text ({error}); save it as UTF-8") from error
    if any("text" not in row for row in rows):
        raise UserError(f"{path} has no column text; name it so, or give a text a line")
    return [str(row["text"]) for row in rows]


def main() -> None:
    """The console command: a UserError is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)

"""`model-surgery`: find an edit, measure it, write it, undo it, send it, all from the terminal.

The same library as the notebooks use; what it refuses it says in one line, with exit code 2.
"""

import sys

import typer

from surgery_lib.cli import caches, chat, edits, export, find, push, reproduce
from surgery_lib.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find a behaviour's direction in a language model and edit it out of the weights.",
)
for command in (
    find.find,
    find.evaluate,
    chat.chat,
    edits.apply,
    edits.undo,
    export.export,
    push.push,
    edits.inspect,
    reproduce.reproduce,
    caches.caches,
):
    app.command()(command)


def main() -> None:
    """The console command: a UserError is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


__all__ = ["app", "main"]

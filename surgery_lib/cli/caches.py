"""`caches` says what is kept to save time, and empties it."""

from typing import Annotated

import typer


def caches(
    names: Annotated[list[str] | None, typer.Argument(help="which; all where left out")] = None,
    empty: Annotated[bool, typer.Option("--empty", help="remove what they hold")] = False,
) -> None:
    """Say what is kept to save time, and how much; with --empty remove it. It is made again."""
    from surgery_lib.study import caches as kept

    if empty:
        typer.echo(f"{kept.empty(names or ()) / 1e6:,.1f} MB freed")
        return
    for one in kept.held():
        if not names or one.name in names:
            typer.echo(
                f"{one.name:10} {one.size / 1e6:10,.1f} MB of at most {one.limit / 1e6:,.0f} MB, "
                f"{one.pieces} pieces: {one.what}, in {one.path}"
            )

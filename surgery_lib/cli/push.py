"""`push`: a finished folder to the hub. No other command uploads anything."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="a patch or edited model, with its README.md")],
    repository: Annotated[str, typer.Argument(help="org/name on the hub")],
    public: Annotated[bool, typer.Option("--public", help="for everybody to see")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="send without asking")] = False,
) -> None:
    """Send a patch or an edited model to the Hugging Face hub: lists the files, and asks first.

    Private unless --public; the login is that of `hf auth login`.
    """
    from surgery_lib.models.push import push_to_hub

    folder = folder.parent if folder.name == "surgery.safetensors" else folder
    ask = _agree if yes else input
    address = push_to_hub(folder, repository, private=not public, ask=ask)
    if address is not None:
        typer.echo(f"sent: {address}")


def _agree(question: str) -> str:
    """Answer for the user, who is still told what is sent."""
    typer.echo(f"{question}y")
    return "y"

"""`chat`: what the model and the edited model answer, side by side in the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import Annotated

import typer

from surgery_lib.cli.options import Device, Dtype, Model, Patch, load, read_patch

GAP = " │ "
NARROW = 60  # columns of a terminal below which the answers stand one under the other


def chat(
    model: Model,
    patch: Patch,
    message: Annotated[list[str] | None, typer.Option(help="ask this and end; repeatable")] = None,
    system: Annotated[str | None, typer.Option(help="the system's turn")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="of an answer")] = 80,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Ask both; an empty line ends. Every message stands alone, so that both answer the same.

    A model without a chat template goes on from what is typed.
    """
    edit = read_patch(patch)
    from surgery_lib.models.generation import chat_prompt, generate

    loaded, tokenizer = load(model, dtype, device)
    with edit.applied(loaded):  # another model is refused before anything is typed
        pass
    for text in message or _typed():
        asked = chat_prompt(tokenizer, text, system) if tokenizer.chat_template else text
        options = {"max_new_tokens": max_new_tokens, "progress": False}
        base = generate(loaded, tokenizer, [asked], **options)[0][0]  # type: ignore[arg-type]
        with edit.applied(loaded):
            edited = generate(loaded, tokenizer, [asked], **options)[0][0]  # type: ignore[arg-type]
        if message:
            typer.echo(f"> {text}")
        typer.echo(beside(base, edited, shutil.get_terminal_size().columns) + "\n")


def beside(base: str, edited: str, columns: int) -> str:
    """Two texts in two columns under their names, as wide as the terminal."""
    if columns < NARROW:
        return f"[base]\n{base.strip()}\n\n[edited]\n{edited.strip()}"
    width = (columns - len(GAP)) // 2
    left, right = (
        _wrapped(name, text, width) for name, text in (("base", base), ("edited", edited))
    )
    lines = zip_longest(left, right, fillvalue="")
    return "\n".join(f"{one:<{width}}{GAP}{other}".rstrip() for one, other in lines)


def _wrapped(name: str, text: str, width: int) -> list[str]:
    lines = [name, "─" * width]
    for paragraph in text.strip().splitlines() or [""]:
        lines += textwrap.wrap(paragraph, width) or [""]
    return lines


def _typed() -> Iterator[str]:
    """What is typed, line by line, until an empty line or the end of the input."""
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line

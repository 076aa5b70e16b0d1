"""What several commands take, and how a user's files of texts are read.

Everything that loads torch is imported inside of functions: help and refusals answer at once.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery_lib.errors import UserError

if TYPE_CHECKING:
    from surgery_lib.surgery import Surgery

Model = Annotated[str, typer.Argument(help="hub id, folder, .gguf, package:… or embedded:patient")]
Patch = Annotated[Path, typer.Argument(help="folder with surgery.safetensors")]
Out = Annotated[Path, typer.Option(help="folder to write; must not exist")]
Texts = Annotated[Path, typer.Option(help="a text a line, .csv or .jsonl with a column text")]
Chat = Annotated[bool, typer.Option(help="put every prompt into the model's chat template")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto")]


def read_texts(path: Path) -> list[str]:
    """The texts of a user's file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; check the path")
    from surgery_lib.data import load, sources

    try:
        rows = load.numbered(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable text ({error}); save it as UTF-8") from error
    if any("text" not in row for _, row in rows):
        raise UserError(f"{path} has no column text; name it so, or give a text a line")
    return [sources.text(row, "text", f"{path}, line {line}") for line, row in rows]


def read_prompts(path: Path | None, chat: bool, tokenizer: Any) -> list[str] | None:
    """A user's prompts as the model reads them."""
    from surgery_lib.models.generation import chat_prompt

    if path is None:
        return None
    found = read_texts(path)
    return [chat_prompt(tokenizer, text) for text in found] if chat else found


def load(model: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A model and its tokenizer, without the bars of what reads the files."""
    from transformers.utils import logging

    from surgery_lib.models import load_model

    logging.disable_progress_bar()
    return load_model(model, dtype=dtype, device=device)


def read_patch(folder: Path) -> "Surgery":
    """The patch of a folder; of the file itself, too."""
    from surgery_lib.surgery import Surgery

    return Surgery.load(folder.parent if folder.name == "surgery.safetensors" else folder)

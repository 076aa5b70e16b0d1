"""`export`: one patch for every engine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from surgery_lib.cli.options import Model, Out, Patch, read_patch
from surgery_lib.errors import UserError

MODELFILE = "Modelfile"


class Kind(StrEnum):
    """What is written."""

    checkpoint = "checkpoint"
    adapter = "adapter"
    gguf_adapter = "gguf-adapter"
    gguf = "gguf"


class Stored(StrEnum):
    """Types of the numbers that an edit touches in a GGUF file."""

    f16 = "f16"
    f32 = "f32"


def export(
    kind: Annotated[Kind, typer.Argument(help="what to write")],
    model: Model,
    patch: Patch,
    out: Out,
    stored: Annotated[Stored, typer.Option(help="gguf: type of the edited tensors")] = Stored.f16,
    everything: Annotated[
        bool, typer.Option(help="gguf: take all tensors out of their quantization")
    ] = False,
) -> None:
    """Write a patch as an edited checkpoint, a LoRA adapter, a GGUF adapter or an edited GGUF.

    checkpoint: transformers, vLLM. adapter: peft, vLLM. gguf-adapter, gguf: llama.cpp, Ollama.
    """
    from surgery_lib import files

    edit = read_patch(patch)
    from surgery_lib import checkpoint, models
    from surgery_lib.checkpoint import adapter, copying, gguf
    from surgery_lib.models import packages

    copying.check_free(out)
    source = packages.original(model)
    if kind is Kind.gguf and source is None:
        raise UserError(
            f"{model} did not come as a GGUF file; export a checkpoint, and convert it with "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    folder = models.snapshot(model)
    base = source.name if source is not None else f"{Path(model).name}.gguf"
    if kind is Kind.checkpoint:
        checkpoint.operate(folder, edit, out, keep=True)
    elif kind is Kind.adapter:
        adapter.export_adapter(edit, folder, out, base=model)
    elif kind is Kind.gguf_adapter:
        gguf.export_adapter(edit, folder, out / "adapter.gguf")
        files.write_text(out / MODELFILE, f"FROM ./{base}\nADAPTER ./adapter.gguf\n")
    elif source is not None:
        name = f"{source.stem}-edited.gguf"
        options = {"stored": stored.value, "everything": everything}
        gguf.export_model(source, folder, edit, out / name, **options)  # type: ignore[arg-type]
        files.write_text(out / MODELFILE, f"FROM ./{name}\n")
    typer.echo(_use(kind, out, base))


def _use(kind: Kind, out: Path, base: str) -> str:
    """How to go on from there."""
    if kind is Kind.gguf_adapter:
        return (
            f"llama.cpp: llama-server -m {base} --lora {out / 'adapter.gguf'}\n"
            f"Ollama: put {base} into {out}, then ollama create edited -f {out / MODELFILE}"
        )
    if kind is Kind.gguf:
        return f"Ollama: ollama create edited -f {out / MODELFILE}; llama.cpp loads the .gguf"
    return f"the {kind.value} is in {out}"

"""`reproduce.json`: what a patch was made of, and the command that makes it again and compares."""

import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery_lib import __version__
from surgery_lib.cli.options import load, read_prompts, read_texts
from surgery_lib.errors import UserError

if TYPE_CHECKING:
    from surgery_lib.profile import Profile
    from surgery_lib.surgery import Surgery

PATCH = "surgery.safetensors"
CONTRAST = "contrast.jsonl"  # what the model answered, where there were no texts
SOFTWARE = ("torch", "transformers", "numpy", "scikit-learn")


class Input(BaseModel):
    """A file of texts, named from the folder of the record."""

    path: str
    sha256: str


class Chosen(BaseModel):
    """The point of the search that was taken (`selection.table.Point`)."""

    probe: str
    rule: str
    fraction: float
    strength: float


class Record(BaseModel):
    """Everything that a patch depends on, and its hash."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["model-surgery-reproduce/1"] = "model-surgery-reproduce/1"
    model: str
    revision: str | None
    dtype: str
    device: str
    seed: int
    chat: bool
    threads: int = Field(ge=1, le=4096)
    software: dict[str, str]
    inputs: dict[str, Input]
    contrast: tuple[str, str] | None
    settings: dict[str, Any]
    point: Chosen
    about: dict[str, Any]
    patch: str


def record(
    out: Path,
    *,
    model: str,
    loaded: Any,
    dtype: str,
    device: str,
    seed: int,
    chat: bool,
    contrast: tuple[str, str] | None,
    settings: "Profile",
    surgery: "Surgery",
    inputs: Mapping[str, Path | None],
) -> None:
    """Write `reproduce.json` beside a patch; files of texts are named from its own folder."""
    import torch

    from surgery_lib import files
    from surgery_lib.models import resolved_revision
    from surgery_lib.selection.table import PARTS

    named = dict(inputs)
    if contrast is not None:
        named["contrast"] = out / CONTRAST
    about = dict(surgery.about)
    made = Record(
        model=model,
        revision=resolved_revision(loaded),
        dtype=dtype,
        device=device,
        seed=seed,
        chat=chat,
        threads=torch.get_num_threads(),
        software=_software(),
        inputs={
            name: Input(path=os.path.relpath(path, out), sha256=files.sha256(path))
            for name, path in named.items()
            if path is not None
        },
        contrast=contrast,
        settings=settings.model_dump(mode="json"),
        point=Chosen(**{part: about[part] for part in PARTS}),
        about=files.plain(about),
        patch=files.sha256(out / PATCH),
    )
    files.write_json(out / "reproduce.json", made.model_dump(mode="json"))


def reproduce(
    path: Annotated[Path, typer.Argument(help="reproduce.json, as find wrote it")],
    out: Annotated[Path | None, typer.Option(help="folder for the patch made again")] = None,
) -> None:
    """Check every hash, make the edit again from its texts, and compare it bit for bit."""
    from surgery_lib import files

    held = _read(path)
    folder = path.parent
    for name, entry in held.inputs.items():
        place = folder / entry.path
        if not place.is_file():
            raise UserError(f"{place} ({name}) is not there; put it back")
        if files.sha256(place) != entry.sha256:
            raise UserError(f"{place} ({name}) was changed since; put the old one back")
    if not (folder / PATCH).is_file() or files.sha256(folder / PATCH) != held.patch:
        raise UserError(f"{folder / PATCH} is not the patch of this record; put it back")
    other = {n: v for n, v in _software().items() if held.software.get(n) != v}
    if other:
        then = held.software
        were = ", ".join(f"{name} {then.get(name)}, now {now}" for name, now in other.items())
        typer.echo(f"other software than then ({were}): the last bits may differ", err=True)
    made = _remake(held, folder)
    with tempfile.TemporaryDirectory(prefix="again-") as temporary:
        again = out if out is not None else Path(temporary)
        made.save(again)
        same = files.sha256(again / PATCH) == held.patch
    if not same:
        raise UserError(_difference(folder, made))
    typer.echo(f"{len(held.inputs)} inputs as recorded; the patch made again is the same bits")


def _remake(held: Record, folder: Path) -> "Surgery":
    from dataclasses import replace

    import torch

    from surgery_lib import files
    from surgery_lib.models import resolved_revision
    from surgery_lib.profile import Profile
    from surgery_lib.selection.find import remake

    try:
        settings = Profile.model_validate(held.settings)
    except ValidationError as error:
        raise UserError(f"the record's settings are no profile ({_first(error)})") from error
    loaded, tokenizer = load(held.model, held.dtype, held.device)
    if resolved_revision(loaded) != held.revision:
        raise UserError(
            f"{held.model} is now {resolved_revision(loaded)} and was {held.revision}; take the "
            "revision that the patch was made on"
        )
    places = {name: folder / entry.path for name, entry in held.inputs.items()}
    if held.contrast is not None:
        rows = files.read_jsonl(places["contrast"])
        shown, absent = ([r["text"] for r in rows if r["label"] == label] for label in (1, 0))
    else:
        shown, absent = read_texts(places["positive"]), read_texts(places["negative"])
    chat = held.chat or held.contrast is not None
    prompts = read_prompts(places.get("prompts"), chat, tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(held.threads)  # the order of sums is part of the bits
    try:
        made = remake(
            loaded,
            tokenizer,
            shown,
            absent,
            held.point.model_dump(),
            prompts=prompts,
            contrast=held.contrast is not None,
            profile=settings,
            seed=held.seed,
        )
    finally:
        torch.set_num_threads(threads)
    return replace(made, about=held.about)


def _read(path: Path) -> Record:
    from surgery_lib import files

    if not path.is_file():
        raise UserError(f"there is no file {path}; give the reproduce.json that find wrote")
    try:
        held = Record.model_validate(files.read_json(path))
    except ValidationError as error:
        raise UserError(
            f"{path} is no record of find ({_first(error)}); give the reproduce.json that it wrote"
        ) from error
    needed = {"contrast", "prompts"} if held.contrast is not None else {"positive", "negative"}
    if lacking := sorted(needed - set(held.inputs)):
        raise UserError(f"{path} names no file of {lacking[0]}; take the record that find wrote")
    return held


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"


def _difference(folder: Path, made: "Surgery") -> str:
    from surgery_lib.surgery import Surgery

    old = Surgery.load(folder)
    if old.rows.shape != made.rows.shape or bool((old.rows != made.rows).any()):
        kept = len(set(old.rows.tolist()) & set(made.rows.tolist()))
        return f"the edit made again shares {kept} of {len(old.rows)} rows; take the same software"
    far = float((old.direction - made.direction).abs().max())
    return f"the edit made again has the same rows, and a direction up to {far:.1e} away"


def _software() -> dict[str, str]:
    return {"model-surgery": __version__, **{name: version(name) for name in SOFTWARE}}

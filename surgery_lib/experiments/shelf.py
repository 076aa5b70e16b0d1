"""Matched edits on disk: the five diagnostics of one model fit and match each method once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery_lib import files
from surgery_lib.baselines.tuning import Delta
from surgery_lib.surgery import Surgery

# What an edit is once its strength is chosen: rows moved along directions, or a change of weights.
Change = Surgery | Delta


def folder(key: str) -> Path:
    """Where an edit of this key lies; a cache, which can be made again."""
    return files.home() / ".cache" / "edits" / key


def take(key: str) -> tuple[dict[str, Any], Change] | None:
    """What was said of an edit, and the edit itself; None where it was not kept."""
    place = folder(key)
    if not (place / "edit.json").is_file():
        return None
    about: dict[str, Any] = files.read_json(place / "edit.json")
    if (place / "delta.safetensors").is_file():
        return about, Delta(files.read_tensors(place / "delta.safetensors"))
    return about, Surgery.load(place)


def put(key: str, about: Mapping[str, Any], change: Change) -> None:
    """Keep an edit; what says that it is whole is written last."""
    place = folder(key)
    if isinstance(change, Delta):
        files.write_tensors(place / "delta.safetensors", dict(change.tensors))
    else:
        change.save(place)
    files.write_json(place / "edit.json", dict(about))

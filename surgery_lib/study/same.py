"""Whether settings are those of the study that a folder holds, or may go on in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery_lib import files
from surgery_lib.profile import flatten

# Where a study runs and how much it takes at once do not make it another study.
FREE = ("about", "model.device", "evaluation.tokens_per_batch", "evaluation.engine_options", "job")
# Settings of the search for an edit → the results that do not depend on them, or are written anew
# by each search. While no other is in the folder they may change: a search that found nothing goes
# on there, and what one choice led to is never mixed with another's.
BEFORE = ("study", "patient", "probe", "front")
SEARCH = {
    "budget": (*BEFORE, "region"),
    "surgery.strengths": (*BEFORE, "region"),
    "region.fractions": BEFORE,
}
# Mappings whose keys are a user's own.
OPEN = ("options", "where")


def difference(held: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> str:
    """The first setting that makes it another study, and both its values; empty for none.

    Settings that only one side knows, after the profile's format has grown, do not count.
    """
    old, new = flatten(_closed(held)), flatten(_closed(given))
    free = (*FREE, *searched(folder))
    for key in sorted(old.keys() | new.keys()):
        if any(f"{key}.".startswith(f"{name}.") for name in free):
            continue
        was, now = (_at(one, key) for one in (old, new))
        if None not in (was, now) and was != now:
            return f"{key} is {was} there, {now} here"
    return ""


def searched(folder: Path) -> list[str]:
    """The settings of the search that nothing in the folder depends on."""
    found = [path for part in ("", "surgery", "compare") for path in (folder / part).glob("*")]
    results = [path for path in found if path.suffix in (".json", ".safetensors")]
    kept = {path.relative_to(folder).with_suffix("").as_posix() for path in results}
    return [name for name, before in SEARCH.items() if kept <= {*before}]


def _closed(value: Any, name: str = "") -> Any:
    """Settings with every mapping of a user's own keys made one leaf: no format grows there."""
    if isinstance(value, dict):
        if name in OPEN:
            return files.dumps(dict(sorted(value.items())))
        return {key: _closed(item, key) for key, item in value.items()}
    return [_closed(item) for item in value] if isinstance(value, list) else value


def _at(flat: Mapping[str, Any], key: str) -> str | None:
    """What stands under a key, as text; None where its section is not known there at all.

    An empty list or mapping above the key is known: it is there, and empty.
    """
    if key in flat:
        return repr(flat[key])
    if any(name.startswith(f"{key}.") for name in flat):
        return "not empty"
    while "." in key:
        key = key.rpartition(".")[0]
        if key in flat and flat[key] in ([], {}):
            return "empty"
    return None

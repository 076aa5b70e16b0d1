"""Reading a profile: YAML, overrides by dotted key, and errors that say what to write instead."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import bundled, home
from surgery_lib.profile.schema import Profile

DEEPEST = 20  # profiles that extend one another
SHOWN = 200  # characters of a wrong value


def profile_path(name: str | Path) -> Path:
    """The file of a profile given by its name in `profiles/` or by a path."""
    if not isinstance(name, str | Path):
        raise UserError(f"{name!r} is no profile; give its name or the path of a .yaml file")
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_absolute() and not files.is_file(path):
            path = home() / path
        known = ""
    else:
        path = bundled("profiles") / f"{name}.yaml"
        names = sorted(file.stem for file in path.parent.glob("*.yaml"))
        known = f"; there are {', '.join(names)}" if names else ""
    if not files.is_file(path):
        raise UserError(
            f"there is no profile {str(name)[:100]}{known}; or give the path of a .yaml file"
        )
    return path


def load_profile(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Profile:
    """Read a profile and change fields by dotted key: `{"probe.layers": [1, 2]}`.

    A profile may build on others: `extends: name`, or a list of names. A nested mapping means the
    same as its dotted keys. UserError names an unknown key with the closest known one, or the field
    whose value is of the wrong kind.
    """
    path = profile_path(name)
    profile = _validate({"name": path.stem, **_read(path, {})}, f"profile {path.name}")
    if not overrides:
        return profile
    settings = profile.model_dump(mode="json")
    overrides = files.bounded(dict(overrides), "override")
    for key, value in flatten(overrides, split_lists=False).items():
        _set(settings, key, value)
    return _validate(settings, "override")


def _read(
    path: Path, known: dict[Path, dict[str, Any]], above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A profile's file on top of those that it `extends`, the later of them on top.

    `known` are those read already, so that each is read once however often it is extended.
    """
    if path in known:
        return known[path]
    if len(above) > DEEPEST:
        raise UserError(f"profile {path.name} extends more than {DEEPEST} profiles in a row")
    raw = files.parse_yaml(files.read_text(path), f"profile {path.name}")
    if not isinstance(raw, dict):
        raise UserError(f"profile {path.name} holds no settings; see profiles/patient.yaml")
    odd = next((key for key in raw if not isinstance(key, str)), None)
    if odd is not None:
        raise UserError(f"profile {path.name} has the key {odd!r}, which is no text; quote it")
    bases = raw.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError(f"profile {path.name}: extends = {bases!r}; give a name or a list of names")
    settings: dict[str, Any] = {}
    for name in bases:
        base = profile_path(name)
        if base in (*above, path):
            raise UserError(f"profile {path.name} extends {name}, which extends it; drop one")
        settings = _merged(settings, _read(base, known, (*above, path)))
    settings.pop("name", None)
    known[path] = _merged(settings, raw)
    return known[path]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; of anything else the upper one stands."""
    merged = dict(below)
    for key, value in above.items():
        held = merged.get(key)
        both = isinstance(held, dict) and isinstance(value, dict)
        merged[key] = _merged(held, value) if both else value  # type: ignore[arg-type]
    return merged


def check_behaviour(profile: Profile, name: str) -> None:
    """UserError where the profile has no such behaviour."""
    if name not in profile.behaviours:
        raise UserError(
            f"profile {profile.name} has no behaviour {name!r}; {closest(name, profile.behaviours)}"
        )


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["evaluation.limit=50", "model.id=foo"]` as a mapping; values are read as YAML."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"{pair!r} sets nothing; write key=value, as in evaluation.limit=50")
        overrides[key] = files.parse_yaml(value, f"the value of {key} ({value[:60]!r})")
    return overrides


def flatten(value: Mapping[str, Any], *, split_lists: bool = True) -> dict[str, Any]:
    """Dotted key → leaf. Lists of mappings are entered by index, other lists are leaves."""
    return dict(_leaves(value, "", split_lists))


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, compared whole and by its last part."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        shortest = sorted(names, key=lambda key: (-key.count("."), -len(key)))
        last = {key.rsplit(".", 1)[-1]: key for key in shortest}
        hits = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
        near = [last[hit] for hit in hits]
    if near:
        return f"did you mean {near[0]}?"
    return f"known: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"


def _leaves(value: Any, key: str, split_lists: bool) -> Iterator[tuple[str, Any]]:
    prefix = f"{key}." if key else ""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}{name}", split_lists)
    elif split_lists and isinstance(value, list) and value and isinstance(value[0], Mapping):
        yield f"{prefix}length", len(value)
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}{index}", split_lists)
    else:
        yield key, value


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    """Write one dotted key in place; every part but the last must be there already."""
    *parents, last = key.split(".")
    target: Any = settings
    for part in parents:
        try:
            target = target[int(part)] if isinstance(target, list) else target[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise _unknown("override", key, settings) from None
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise _unknown("override", key, settings)


def _unknown(
    where: str, key: str, settings: Mapping[str, Any], siblings: Iterable[str] = ()
) -> UserError:
    keys = [name for name, _ in _leaves(settings, "", True) if not name.endswith(".length")]
    sections = dict.fromkeys(name.rsplit(".", 1)[0] for name in keys if "." in name)
    names = [*siblings, *sections, *keys]
    known = [name for name in dict.fromkeys(names) if not f"{name}.".startswith(f"{key}.")]
    return UserError(f"{where}: there is no setting {key}; {closest(key, known)}")


def _validate(raw: dict[str, Any], where: str) -> Profile:
    try:
        return Profile.model_validate(raw)
    except RecursionError as error:
        raise UserError(f"{where} is nested without end; make it flatter") from error
    except ValidationError as error:
        raise _explain(error, raw, where) from error


def _explain(error: ValidationError, raw: dict[str, Any], where: str) -> UserError:
    """The first fault as one line: the field, what was given, what is expected."""
    errors = error.errors(include_url=False, include_context=False)
    first = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    path, model, description = _locate(first["loc"])
    if first["type"] == "extra_forbidden":
        siblings = [".".join([*path, name]) for name in getattr(model, "model_fields", {})]
        key = ".".join([*path, str(first["loc"][-1])])
        return _unknown(where, key, raw, siblings)
    key = ".".join(path)
    given = repr(first["input"])
    if len(given) > SHOWN:
        given = f"{given[:SHOWN]}…"
    if first["type"] == "missing":
        return UserError(f"{where}: {key} is missing; it is: {description}")
    same = [item["msg"] for item in errors if _locate(item["loc"])[0] == path]
    wanted = " or ".join(dict.fromkeys(_lower(message) for message in same))
    return UserError(f"{where}: {key} = {given}: {wanted}; it is: {description}")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _locate(loc: tuple[int | str, ...]) -> tuple[list[str], Any, str]:
    """Follow pydantic's location through the models: real keys, the type there, what it is for."""
    kind: Any = Profile
    path: list[str] = []
    description = "the whole profile"
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            if field is None:
                break
            kind, description = _inner(field.annotation), field.description or ""
        elif get_origin(kind) in (tuple, list) and isinstance(part, int):
            kind = _inner(get_args(kind)[0])
        elif get_origin(kind) is dict and str(part):
            kind = _inner(get_args(kind)[1])
        else:
            break
        path.append(str(part))
    return path, kind, description


def _inner(kind: Any) -> Any:
    """Drop the None of an optional type; other unions stay as they are."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [item for item in get_args(kind) if item is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind

"""What a profile may say and what the package offers, as tables for docs/, from the code itself."""

import inspect
import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import surgery_lib
from surgery_lib.profile.schema import Profile
from surgery_lib.report.style import markdown_table


def profile_fields() -> str:
    """Every section of a profile in the order in which they contain one another."""
    sections: dict[str, type[BaseModel]] = {}

    def collect(model: type[BaseModel], path: str) -> None:
        if model in sections.values():
            return
        sections[path] = model
        for name, field in model.model_fields.items():
            for part in _models(field.annotation):
                collect(part, f"{path}.{name}" if path else name)

    collect(Profile, "")
    parts = []
    for path, model in sections.items():
        rows = [
            [f"`{name}`", _kind(field), _default(field), field.description or ""]
            for name, field in model.model_fields.items()
        ]
        title = f"`{path}`" if path else "The profile"
        about = inspect.getdoc(model) or ""
        table = markdown_table(["field", "value", "default", "what it says"], rows)
        parts.append(f"## {title}\n\n{about}\n\n{table}")
    return "\n".join(parts)


def public_api() -> str:
    """Signature and docstring of every public name, with the public methods of classes."""
    parts = []
    for name in sorted(surgery_lib.PUBLIC):
        found = getattr(surgery_lib, name)
        parts.append(_entry("##", name, found))
        if inspect.isclass(found):
            parts += [
                _entry("###", f"{name}.{method}", member)
                for method, member in inspect.getmembers(found)
                if not method.startswith("_") and callable(member)
            ]
    return "\n".join(parts)


def _entry(level: str, name: str, found: Any) -> str:
    signature = str(inspect.signature(found)).replace("'", "")
    text = inspect.getdoc(found) or ""
    return f"{level} `{name}`\n\n```python\n{name}{signature}\n```\n\n```text\n{text}\n```\n"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections named in an annotation, however deep."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _kind(field: FieldInfo) -> str:
    named = field.annotation
    text = named.__name__ if inspect.isclass(named) and not get_args(named) else str(named)
    for prefix in ("typing.", "surgery_lib.profile.schema."):
        text = text.replace(prefix, "")
    # Limits of a number are checked by pydantic; its type is enough here.
    text = re.sub(r"Annotated\[(\w+), .*?\)\]\)?\]", r"\1", text)
    return f"`{text}`".replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "its own fields" if isinstance(value, BaseModel) else f"`{value!r}`".replace("|", "\\|")

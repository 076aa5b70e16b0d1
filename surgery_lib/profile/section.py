"""What all parts of a profile have in common."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of a profile: an unknown key is an error, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1 and false for 0; a field of numbers takes numbers."""
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in given) and counts(
            cls.model_fields[str(info.field_name)].annotation
        ):
            raise ValueError("true and false are no numbers")
        return value


def counts(kind: Any) -> bool:
    """Whether an annotation has numbers in it and no truth values."""
    found = set(parts(kind))
    return bool(found & {int, float}) and bool not in found


def parts(kind: Any) -> Iterator[Any]:
    """What an annotation is made of: its types, and the values of its Literals."""
    yield kind
    for part in get_args(kind):
        yield from parts(part)

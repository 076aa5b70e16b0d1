"""Text from and for the outside: JSON and YAML that may be broken, endless or malicious.

Whatever is wrong with it is a UserError that says what it is called and what to do.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import yaml

from surgery_lib.errors import UserError

if TYPE_CHECKING:
    import torch

# What no honest file comes near: levels of nesting, values in all, characters of YAML.
DEEPEST, MOST_VALUES, LONGEST_YAML = 100, 1_000_000, 1_000_000


def loads(text: str, what: str = "the text") -> Any:
    """The value of a JSON text; UserError, which calls it `what`, where it is none."""
    try:
        return bounded(json.loads(text), what, math.inf)  # JSON has no aliases
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{what} is nested without end; delete it or make it again") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{what} is not JSON ({error}); mend or drop it, or make it again"
        ) from error


def bounded(value: Any, what: str, most: float = MOST_VALUES) -> Any:
    """`value` itself; UserError where it is deeper, or with aliases larger, than honest data."""
    todo, seen = [(value, 0)], 0
    while todo:
        item, depth = todo.pop()
        seen += 1
        if depth > DEEPEST or seen > most:
            raise UserError(
                f"{what} is nested more than {DEEPEST} levels deep or holds more than "
                f"{MOST_VALUES:,} values; make it smaller"
            )
        if isinstance(item, Mapping):
            todo.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            todo.extend((child, depth + 1) for child in item)
    return value


class _Loader(yaml.SafeLoader):
    """Plain values only; a key that stands twice is an error, and merges cannot multiply."""

    def flatten_mapping(self, node: Any) -> None:
        """Before keys are merged: each of this mapping's own may stand once."""
        checked = self.__dict__.setdefault("checked", set())
        if id(node) not in checked:
            checked.add(id(node))
            own = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key in own if own.count(key) > 1 and key != "<<"), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice!r} stands twice", node.start_mark
                )
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES // DEEPEST:
            raise yaml.constructor.ConstructorError(
                None, None, "a mapping has too many keys", node.start_mark
            )


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text, called `what` in the UserError where it is none."""
    if len(text) > LONGEST_YAML:
        raise UserError(f"{what} has over {LONGEST_YAML:,} characters; make it smaller")
    try:
        return bounded(yaml.load(text, Loader=_Loader), what)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{what} is nested without end; make it flatter") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{what} is not valid YAML: {detail}; correct or quote it") from error


def read_text(path: Path | str) -> str:
    """A text file, without a mark of byte order; UserError where it is missing or no UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; check the path, or run the step that writes it first"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}); "
            "check the path"
        ) from error


def is_tensor(value: Any) -> "TypeGuard[torch.Tensor]":
    """Whether it is a tensor; without PyTorch there is none."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and paths into what JSON knows; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) or is_tensor(value):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text, keys in the order given."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False)

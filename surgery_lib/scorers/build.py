"""From a profile's description of a scorer to the scorer."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from surgery_lib.errors import UserError
from surgery_lib.scorers.base import Named

# kind → module, class, and which argument of the class each field of the description is
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "classifier": (
        "surgery_lib.scorers.classifier",
        "ClassifierScorer",
        {"id": "id", "label": "label", "revision": "revision"},
    ),
    "words": ("surgery_lib.scorers.words", "WordsScorer", {"id": "id", "revision": "revision"}),
    "refusal": ("surgery_lib.scorers.refusal", "RefusalPhrases", {}),
    "perspective": ("surgery_lib.scorers.perspective", "PerspectiveScorer", {}),
    "minilm": ("surgery_lib.scorers.minilm", "MiniLMScorer", {"id": "id"}),
    "judge": ("surgery_lib.scorers.judge", "JudgeScorer", {"id": "id"}),
    "texts": ("surgery_lib.scorers.words", "TextsScorer", {"id": "path"}),
    "patient": ("surgery_lib.patient.scorer", "PatientScorer", {"id": "behaviour"}),
}
FIELDS = {"kind", "name", "id", "label", "revision", "threshold", "invert", "options"}


def build(spec: Mapping[str, Any] | BaseModel) -> Named:
    """The scorer that `spec` describes.

    `spec` is a profile's scorer section or a mapping of the same fields; `options` go to the
    scorer's class. Fields left out keep the class's defaults. UserError names an unknown kind,
    field or option.
    """
    given = dict(spec.model_dump() if isinstance(spec, BaseModel) else spec)
    kind, options = _options(given)
    module, family, _ = KINDS[kind]
    try:
        inner = getattr(importlib.import_module(module), family)(**options)
    except (TypeError, AttributeError) as error:
        raise UserError(f"scorer {kind}: {error}; correct its options in the profile") from error
    return Named(
        name=given.get("name") or kind,
        inner=inner,
        threshold=float(given.get("threshold", 0.5)),
        invert=bool(given.get("invert", False)),
    )


# Of these nothing is loaded or asked for before they score: to build one is to check it.
AT_ONCE = ("patient", "refusal", "perspective", "judge")


def check(spec: Mapping[str, Any] | BaseModel) -> None:
    """UserError for what `build` would refuse, as far as it can be told without loading a model."""
    kind, options = _options(dict(spec.model_dump() if isinstance(spec, BaseModel) else spec))
    if kind in AT_ONCE:
        build(spec)
        return
    module, name, _ = KINDS[kind]
    family = getattr(importlib.import_module(module), name)
    try:
        inspect.signature(family).bind(**options)
    except TypeError as error:
        raise UserError(f"scorer {kind}: {error}; correct its options in the profile") from error
    family.check(**options)


def _options(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a scorer, and what its class is called with."""
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"unknown scorer {kind!r}; use one of {', '.join(KINDS)}")
    # What is no field is an option: {"kind": "judge", "question": "toxicity"}.
    options = {key: given.pop(key) for key in list(given) if key not in FIELDS}
    options |= given.get("options") or {}
    options |= {
        argument: given[field]
        for field, argument in KINDS[kind][2].items()
        if given.get(field) not in (None, "")
    }
    return kind, options

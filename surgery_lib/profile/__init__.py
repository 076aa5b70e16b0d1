"""A study's settings: the schema, and reading a profile with overrides."""

from surgery_lib.profile.read import (
    check_behaviour,
    closest,
    flatten,
    load_profile,
    parse_overrides,
    profile_path,
)
from surgery_lib.profile.schema import (
    Behaviour,
    Budget,
    Capability,
    Controls,
    EvaluationSettings,
    Profile,
    Source,
    Splits,
)

__all__ = [
    "Behaviour",
    "Budget",
    "Capability",
    "Controls",
    "EvaluationSettings",
    "Profile",
    "Source",
    "Splits",
    "check_behaviour",
    "closest",
    "flatten",
    "load_profile",
    "parse_overrides",
    "profile_path",
]

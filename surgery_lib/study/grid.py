"""A grid of studies, profiles × behaviours × seeds, from one YAML file; and what came of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.profile import Profile, check_behaviour, closest, load_profile
from surgery_lib.profile.schema import NAME

KEYS = ("about", "profiles", "behaviours", "seeds", "overrides")


@dataclass(frozen=True)
class Grid:
    """What a grid's file says.

    `paths` are the profiles as named in the file, `settings` as read, both by the name that their
    results have; `behaviours` and `seeds` are empty where each profile's own are meant.
    """

    name: str
    paths: dict[str, str]
    settings: dict[str, Profile]
    behaviours: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: dict[str, Any]

    @classmethod
    def load(cls, path: Path | str) -> "Grid":
        """Read and check a grid. UserError for what it does not know, before any job starts."""
        path = Path(path)
        if not path.is_absolute() and not files.is_file(path):
            path = home() / path
        if not files.is_file(path):
            raise UserError(f"there is no grid {path.name[:100]}; see workflow/grids/")
        if not re.fullmatch(NAME, path.stem):
            raise UserError(
                f"a grid's name becomes a folder: {path.name[:100]!r} has to be letters, digits "
                "and ._- before .yaml; rename it"
            )
        raw = files.parse_yaml(files.read_text(path), f"grid {path.name}")
        if not isinstance(raw, dict) or not raw.get("profiles"):
            raise UserError(f"grid {path.name} names no profiles; see workflow/grids/patient.yaml")
        for key in raw:
            if key not in KEYS:
                raise UserError(f"grid {path.name} has no key {key!r}; {closest(str(key), KEYS)}")
        overrides = raw.get("overrides") or {}
        if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
            raise UserError(f"grid {path.name}: overrides are key: value, as in probe.limit: 50")
        for key, kind in (("profiles", str), ("behaviours", str), ("seeds", int)):
            _check_list(raw.get(key) or [], kind, f"grid {path.name}: {key}")
        named = {name: load_profile(name, overrides) for name in raw["profiles"]}
        if len({profile.name for profile in named.values()}) < len(named):
            raise UserError(
                f"grid {path.name}: two profiles have one name and so one folder; rename a file"
            )
        grid = cls(
            path.stem,
            {profile.name: name for name, profile in named.items()},
            {profile.name: profile for profile in named.values()},
            tuple(raw.get("behaviours") or ()),
            tuple(raw.get("seeds") or ()),
            overrides,
        )
        if not all(0 <= seed < 2**32 for seed in grid.seeds):
            raise UserError(f"grid {path.name}: seeds are whole numbers from 0 to 2³² − 1")
        for profile, behaviour, _ in grid.studies():
            check_behaviour(grid.settings[profile], behaviour)
        return grid

    def studies(self) -> Iterator[tuple[str, str, int]]:
        """Every (profile, behaviour, seed)."""
        for name, profile in self.settings.items():
            for behaviour in self.behaviours or tuple(profile.behaviours):
                for seed in self.seeds or profile.seeds:
                    yield name, behaviour, seed

    def folders(self) -> list[str]:
        """Where every study's results lie, below the folder of all results."""
        return [f"{profile}/{behaviour}/seed{seed}" for profile, behaviour, seed in self.studies()]

    def first(self, profile: str) -> tuple[str, int]:
        """Some study of a profile: what all of them share is made under its name."""
        return next((b, s) for name, b, s in self.studies() if name == profile)


def _check_list(value: Any, kind: type, what: str) -> None:
    words = "whole numbers, as in [0, 1]" if kind is int else "names, as in [a, b]"
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise UserError(
            f"{what} are a list of {words}, as in {'[0, 1]' if kind is int else '[a, b]'}"
        )
    if len(set(value)) < len(value):
        raise UserError(f"{what}: one stands twice; name each once")


def gather(grid: Grid, results: Path | str) -> list[dict[str, Any]]:
    """One entry a study: what it is, whether it is done, and its headline numbers where it is.

    `base` and `edited` are readings (value, low, high, n) of the behaviour on test prompts by the
    study's first scorer; `perplexity_rise` is relative, on clean text.
    """
    return [
        {"profile": profile, "behaviour": behaviour, "seed": seed, **_numbers(results, folder)}
        for (profile, behaviour, seed), folder in zip(grid.studies(), grid.folders(), strict=True)
    ]


def _numbers(results: Path | str, folder: str) -> dict[str, Any]:
    path = home() / results / folder / "evaluation.json"
    if not path.is_file():
        return {"done": False}
    payload = files.read_json(path)["result"]
    base, edited = (payload["variants"][name]["draws"][0] for name in ("base", "edited"))
    return {
        "done": True,
        "scorer": payload["scorers"][0],
        "base": base["rate"],
        "edited": edited["rate"],
        "perplexity_rise": edited["perplexity_rise"],
    }

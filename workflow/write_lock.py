"""Print the versions that are installed here and that the package needs, one pin a line.

Run by `make lock` in an environment of its own. Local version suffixes (torch's +cpu, +cu128) are
dropped, and so is what torch brings for one kind of accelerator: both depend on the machine.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ACCELERATOR = ("nvidia-", "cuda-", "triton")


def needed(requirements: list[str]) -> dict[str, str]:
    """Canonical name → version of the requirements and everything that they need here."""
    versions: dict[str, str] = {}
    todo = [(Requirement(text), "") for text in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if not name.startswith(ACCELERATOR):
            versions[name] = found.version.split("+")[0]
        for wanted in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, wanted))
            todo += [(Requirement(text), wanted) for text in found.requires or []]
    return versions


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    direct = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    pins = needed([*direct, *project["build-system"]["requires"]])
    print("# Every version that make installs; written by `make lock`.")
    for name, version in sorted(pins.items()):
        print(f"{name}=={version}")

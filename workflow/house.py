"""The package as a house: which room uses which. Writes the picture in CONTRIBUTING.md.

python workflow/house.py            write it
python workflow/house.py --check    exit with 1 where it has drifted, or an import runs upward
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "surgery_lib"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- begin house -->", "<!-- end house -->"
# From the ground up: a room may use those before it, none after it.
ROOMS = [
    *(
        "errors",
        "parsing",
        "files",
        "behaviour",
        "profile",
        "models",
        "patient",
        "surgery",
        "study",
    ),
    *("checkpoint", "data", "scorers", "baselines", "evaluation", "selection", "diagnostics"),
    *("report", "experiments", "site", "cli"),
]


def room_of(path: Path) -> str:
    """The room that a file of the package is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "surgery_lib":
            found += [f"surgery_lib.{name.name}" for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    parts = [name.split(".") for name in found]
    return {part[1] for part in parts if part[0] == "surgery_lib" and len(part) > 1} & set(ROOMS)


def house() -> dict[str, set[str]]:
    """Room → the other rooms that it uses."""
    uses: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = room_of(path)
        if own in ROOMS:
            uses[own] = uses.get(own, set()) | (imports(path) - {own})
    return uses


def upward(uses: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports from a lower room of a higher one; there should be none."""
    place = ROOMS.index
    return [(own, other) for own in uses for other in uses[own] if place(other) > place(own)]


def picture(uses: dict[str, set[str]]) -> str:
    """A Mermaid graph: an arrow to each room used that is not reached through another one."""

    def reached(room: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in uses[room]))

    lines = ["```mermaid", "graph BT"]
    for own in sorted(uses, key=ROOMS.index):
        through = set().union(*(reached(other) for other in uses[own]))
        direct = sorted(uses[own] - through, key=ROOMS.index)
        lines += [f"  {other} --> {own}" for other in direct] or [f"  {own}"]
    return "\n".join([*lines, "```"])


def main(arguments: list[str]) -> int:
    """Write the picture, or check it."""
    uses = house()
    if wrong := upward(uses):
        print("imports run upward:", ", ".join(f"{a} → {b}" for a, b in wrong))
        return 1
    page = PAGE.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{picture(uses)}\n{END}"
    wanted = re.sub(f"{BEGIN}.*?{END}", lambda _: block, page, flags=re.DOTALL)
    if "--check" in arguments:
        return int(wanted != page)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

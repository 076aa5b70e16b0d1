"""Write what is the same in every notebook: badge, links, the setup cell; and README's table.

Everything comes from the repository's address in pyproject.toml and the package's version, whose
tag is `v<version>`. `links.py --check` writes nothing and exits with 1 where something has drifted.
"""

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- begin links -->", "<!-- end links -->"
TABLE = "<!-- begin notebooks -->", "<!-- end notebooks -->"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SETUP = """\
# On Colab this fetches the repository and what is missing; anywhere else it does nothing.
import os
import subprocess
import sys
from pathlib import Path

url = os.environ.get("MODEL_SURGERY_REPOSITORY", "{address}")
if "google.colab" in sys.modules or "MODEL_SURGERY_REPOSITORY" in os.environ:
    if not Path("model-surgery").exists():
        subprocess.run(["git", "clone", "-q", "-b", "{tag}", url, "model-surgery"], check=True)
    subprocess.run([sys.executable, "model-surgery/workflow/colab.py"], check=True)
    sys.path.insert(0, str(Path("model-surgery").resolve()))
"""


@dataclass(frozen=True)
class Project:
    """Where the repository is at home, and the tag that belongs to this version."""

    address: str
    tag: str

    @classmethod
    def read(cls, root: Path) -> "Project":
        """From pyproject.toml and the package's `__version__`."""
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        source = (root / "surgery_lib" / "__init__.py").read_text(encoding="utf-8")
        found = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)
        assert found is not None
        return cls(project["urls"]["Repository"].removesuffix(".git"), f"v{found[1]}")

    @property
    def setup(self) -> str:
        """The source of the setup cell."""
        return SETUP.format(address=self.address, tag=self.tag).rstrip("\n")

    def badge(self, path: Path) -> str:
        """The button that opens a notebook in Colab."""
        place = re.sub(r"^https://github\.com/", "", self.address)
        target = f"https://colab.research.google.com/github/{place}/blob/{self.tag}"
        return f"[![Open in Colab]({BADGE})]({target}/notebooks/{path.name})"


def notebooks(root: Path) -> list[Path]:
    """The numbered notebooks in order, then quickstart."""
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    quickstart = root / "notebooks" / "quickstart.ipynb"
    return [*found, quickstart] if quickstart.is_file() else found


def linked(path: Path, project: Project, before: Path | None, after: Path | None) -> str:
    """The text of a notebook with its links and its setup cell."""
    notebook = nbformat.read(path, as_version=4)
    head = notebook.cells[0]
    body = re.sub(rf"\n*{BEGIN}.*?{END}\n*", "\n\n", head.source, flags=re.DOTALL)
    parts = [project.badge(path)]
    if before is not None:
        parts.append(f"[← {_label(before)}]({before.name})")
    if after is not None:
        parts.append(f"[{_label(after)} →]({after.name})")
    title, _, rest = body.strip().partition("\n")
    links = f"{BEGIN}\n{' · '.join(parts)}\n{END}"
    head.source = "\n\n".join(part for part in (title, links, rest.strip()) if part)
    notebook.cells = [cell for cell in notebook.cells if not _is_setup(cell)]
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    cell = nbformat.v4.new_code_cell(project.setup, metadata={"tags": ["setup"]}, id="setup")
    notebook.cells.insert(first, cell)
    return str(nbformat.writes(notebook, indent=1)) + "\n"


def table(root: Path, project: Project) -> str:
    """README's list of notebooks: what each asks, and its badge."""
    lines = ["| notebook | | |", "|---|---|---|"]
    for path in notebooks(root):
        source = nbformat.read(path, as_version=4).cells[0].source
        title = re.split(r" · |: ", source.splitlines()[0].lstrip("# "), maxsplit=1)[-1]
        link = f"[{_label(path)}](notebooks/{path.name})"
        lines.append(f"| {link} | {title[:1].upper() + title[1:]} | {project.badge(path)} |")
    return "\n".join(lines)


def wanted(root: Path) -> dict[Path, str]:
    """Every file that this script writes, with what it has to hold."""
    project, paths = Project.read(root), notebooks(root)
    numbered = [path for path in paths if path.stem[:2].isdigit()]
    files = {}
    for path in paths:
        at = numbered.index(path) if path in numbered else None
        before = numbered[at - 1] if at else None
        after = numbered[at + 1] if at is not None and at + 1 < len(numbered) else None
        after = numbered[0] if at is None else after
        files[path] = linked(path, project, before, after)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    begin, end = TABLE
    block = f"{begin}\n{table(root, project)}\n{end}"
    files[readme] = re.sub(rf"{begin}.*?{end}", lambda _: block, text, flags=re.DOTALL)
    return files


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the files that differ, or with --check name them; 1 where something has drifted."""
    changed = [
        (path, text)
        for path, text in wanted(root).items()
        if path.read_text(encoding="utf-8") != text
    ]
    for path, text in changed:
        if "--check" in arguments:
            print(f"{path.relative_to(root)} has drifted; run make links")
        else:
            path.write_text(text, encoding="utf-8")
    return int(bool(changed) and "--check" in arguments)


def _label(path: Path) -> str:
    return path.stem.replace("_", " ")


def _is_setup(cell: Any) -> bool:
    return "setup" in cell.metadata.get("tags", [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

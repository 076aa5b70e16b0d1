"""pyproject.toml, requirements.lock and environment.yml say the same, and imports are declared."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = (ROOT / "environment.yml").read_text(encoding="utf-8")
EXTRAS = PROJECT["optional-dependencies"]
WHOLE = [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["study"]]
# An extra that takes in another names this package.
RUN = [one for one in map(Requirement, WHOLE) if one.name != PROJECT["name"]]
DEVELOP = [one for one in map(Requirement, EXTRAS["dev"]) if one.name != PROJECT["name"]]
# Where a module is not named as the package that brings it.
PACKAGES = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "lm_eval": "lm-eval",
    "IPython": "ipython",
    "PIL": "pillow",
}


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return dict(pin.split("==") for pin in pins)


def reasons() -> dict[str, str]:
    return dict(re.findall(r"^#   (\S+): (.+)$", ENVIRONMENT, flags=re.MULTILINE))


@pytest.mark.parametrize("requirement", [*RUN, *DEVELOP], ids=lambda item: item.name)
def test_every_direct_dependency_is_pinned_and_has_a_reason(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    assert name in lock()
    assert requirement.specifier.contains(lock()[name])
    assert len(reasons()[name]) >= 5


def test_reasons_are_given_for_direct_dependencies_alone() -> None:
    direct = {canonicalize_name(item.name) for item in [*RUN, *DEVELOP]}
    assert set(reasons()) == direct


def test_the_lock_is_pins_and_nothing_else() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"--|@|://|\+|nvidia", text)
    assert lock()["torch"] == "2.13.0"
    assert list(lock()) == sorted(lock())


def test_conda_installs_the_lock_and_the_package() -> None:
    python, pip, rest = yaml.safe_load(ENVIRONMENT)["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert rest == {"pip": ["-r requirements.lock", "-e ."]}
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_import_is_declared() -> None:
    declared = {canonicalize_name(item.name) for item in RUN}
    extras = {
        canonicalize_name(Requirement(text).name)
        for name, texts in PROJECT["optional-dependencies"].items()
        if name != "dev"
        for text in texts
    }
    for path in [*(ROOT / "surgery_lib").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for module in imported(path) - set(sys.stdlib_module_names) - {"surgery_lib"}:
            package = canonicalize_name(PACKAGES.get(module, module))
            assert package in declared | extras, f"{path.name} imports {module}"


def imported(path: Path) -> set[str]:
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        lines = [line for cell in cells for line in "".join(cell["source"]).split("\n")]
        source = "\n".join(line for line in lines if line.strip()[:1] not in ("!", "%"))
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names

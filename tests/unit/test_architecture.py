"""The house: rooms import downwards only, and stay small; its picture is the real one."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import surgery_lib

PACKAGE = Path(surgery_lib.__file__).parent
HOUSE = PACKAGE.parent / "workflow" / "house.py"


def test_imports_run_downwards_and_the_picture_is_true() -> None:
    done = subprocess.run([sys.executable, HOUSE, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout or "CONTRIBUTING.md: run workflow/house.py"


def test_the_house_is_small() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 22
    lengths = {
        str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 300}


def test_no_model_is_read_without_saying_whether_its_python_may_run() -> None:
    """Left out, transformers asks, and runs it for whoever answers y."""
    silent = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and re.fullmatch(r"(Auto\w+|family)\.from_(pretrained|config)", ast.unparse(call.func))
        and "trust_remote_code" not in [word.arg for word in call.keywords]
    ]
    assert not silent


def test_errors_are_documented_in_one_way() -> None:
    """In the last sentence of prose, or under Raises: beside other sections; never both."""
    mixed = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                prose, raises, _ = (ast.get_docstring(node) or "").partition("Raises:")
                sections = raises or re.search(r"^(Args|Returns|Yields):", prose, re.MULTILINE)
                if sections and "UserError" in prose:
                    mixed.append(f"{path.relative_to(PACKAGE)}:{node.name}")
    assert not mixed

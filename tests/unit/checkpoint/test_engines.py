"""The table of engines names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)
ROWS = PAGE.split("\n## ")[0].count("\n| ") - 1  # less the head


def test_every_row_names_its_test() -> None:
    assert len(NAMED) == ROWS >= 10


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_the_named_test_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

"""The house: rooms import downwards only, and stay small; its picture is the real one."""

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
    assert not {name: length for name, length in lengths.items() if length > 320}

"""What is given to make arrives as it is given: as an argument, never as a part of a command."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ODD = "a'b\"; touch made; `touch made`; echo '"
GIVEN = {
    "reproduce": ("PROFILE", "BEHAVIOUR", "SEED", "RESULTS", "SET", "NOTEBOOKS", "WORKFLOW"),
    "grid": ("GRID", "RESULTS", "WORKFLOW"),
    "executed": ("RESULTS", "PROFILE"),
    "figures": ("RESULTS",),
    "report": ("RESULTS",),
    "check-results": ("RESULTS",),
    "readme": ("CHECK",),
}


@pytest.mark.parametrize("target", GIVEN)
def test_a_value_with_quotes_stays_a_value(target: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("requirements.lock", "pyproject.toml", ".venv/.installed"):
        (tmp_path / name).touch()
    for name in ("python", "snakemake"):
        (programs / name).write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        (programs / name).chmod(0o755)
    values = [f"{name}={name.lower()}{ODD}" for name in GIVEN[target]]
    done = subprocess.run(["make", target, *values], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "made").exists()
    assert all(name.lower() + ODD in done.stdout for name in GIVEN[target])

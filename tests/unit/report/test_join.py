"""Methods that were compared later are joined only where the unedited model reads the same."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HELD = ROOT / "results" / "gemma3-270m" / "toxicity" / "seed1" / "comparison.json"


def part(whole: dict[str, Any], folder: Path, *names: str) -> Path:
    """A comparison of some of its methods."""
    found = copy.deepcopy(whole)
    outcomes = found["result"]["outcomes"]
    found["result"]["outcomes"] = [one for one in outcomes if one["name"] in names]
    found["result"]["unsearched"] = list(names)
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(found))
    return folder


def join(new: Path, old: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "workflow/join.py", str(new), str(old)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_two_parts_of_a_comparison_make_the_whole(tmp_path: Path) -> None:
    whole = json.loads(HELD.read_text())
    *names, last = [one["name"] for one in whole["result"]["outcomes"]]
    new, old = part(whole, tmp_path / "new", last), part(whole, tmp_path / "old", *names)
    done = join(new, old)
    assert done.returncode == 0, done.stderr
    found = json.loads((old / "comparison.json").read_text())
    assert found["result"] == whole["result"]
    origin = found["joined"][-1]
    assert (origin["methods"], origin["commit"]) == ([last], whole["commit"])
    for table in (HELD.parent / "tables").iterdir():
        assert (old / "tables" / table.name).read_text() == table.read_text()


def test_a_run_that_does_not_say_its_number_format_had_its_profiles(tmp_path: Path) -> None:
    path = ROOT / "results" / "patient" / "jailbreak" / "seed0" / "comparison.json"
    whole = json.loads(path.read_text())
    whole.pop("dtype", None)
    old = part(whole, tmp_path / "old", "caa")
    assert join(part(whole | {"dtype": "float32"}, tmp_path / "new", "dpo"), old).returncode == 0
    refused = join(part(whole | {"dtype": "bfloat16"}, tmp_path / "other", "dpo"), old)
    assert "dtype" in refused.stderr


@pytest.mark.parametrize("change", ["flag", "dtype", "trials"])
def test_what_is_not_one_run_is_refused(tmp_path: Path, change: str) -> None:
    whole = json.loads(HELD.read_text())
    old = part(whole, tmp_path / "old", "caa")
    if change == "flag":
        flags = whole["result"]["base"]["flags"]["reporter"]
        flags[0] = 1 - flags[0]
    elif change == "dtype":
        whole["dtype"] = "float32"
    else:
        whole["result"]["trials"] += 1
    before = (old / "comparison.json").read_bytes()
    done = join(part(whole, tmp_path / "new", "dpo"), old)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert (old / "comparison.json").read_bytes() == before

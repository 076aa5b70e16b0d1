"""A behaviour from a user's own files: docs/own.md's command and Python, and clear errors."""

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import papermill
import pytest
import yaml

from surgery_lib import scorers
from surgery_lib.checkpoint import card
from surgery_lib.data import load as behaviours
from surgery_lib.errors import UserError
from surgery_lib.models import layout, load_model
from surgery_lib.profile import load_profile
from surgery_lib.surgery import Surgery

ROOT = Path(__file__).resolve().parents[2]


def section(name: str = "own") -> list[str]:
    """Commands and Python between a pair of the page's markers."""
    text = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    block = text.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]
    return re.findall(r"```(?:sh|python)\n(.*?)```", block, flags=re.DOTALL)


def texts(count: int) -> list[tuple[str, int]]:
    return [(f"{'bad rude' if i % 2 else 'kind calm'} words {i}", i % 2) for i in range(count)]


def write(folder: Path, model: Path, rows: list[tuple[str, int]], prompts: int = 40) -> Path:
    """Both files and a profile that names them; its path."""
    with (folder / "texts.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *rows])
    (folder / "prompts.txt").write_text("\n".join(f"you are {i}" for i in range(prompts)))
    text = (ROOT / "profiles" / "own.yaml").read_text().replace("data/own", str(folder))
    settings = yaml.safe_load(text)
    settings["model"] = {"id": str(model), "dtype": "float32", "device": "cpu"}
    settings["budget"] = {"perplexity_rise": 1e6}
    settings["evaluation"] = {"window": 32}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def load(path: Path) -> Any:
    return behaviours.load("own", load_profile(path).behaviours["own"])


def test_one_file_is_split_into_disjoint_parts(tmp_path: Path, tiny_folder: Path) -> None:
    data = load(write(tmp_path, tiny_folder, texts(120)))
    assert [len(data.examples[s]) for s in ("train", "validation", "test")] == [72, 24, 24]
    held = [e.text for examples in data.examples.values() for e in examples]
    assert len(set(held)) == 120
    assert all(text.startswith("kind") for text in data.clean["test"])


@pytest.mark.parametrize(
    ("rows", "prompts", "message"),
    [
        (texts(30), 40, "50 texts of each label"),
        ([(text, 0) for text, _ in texts(120)], 40, "both"),
        (texts(120), 8, "10 are needed"),
        ([("the same", label) for _, label in texts(120)], 40, "drop it from one"),
    ],
)
def test_poor_data_are_named(
    tmp_path: Path, tiny_folder: Path, rows: list[tuple[str, int]], prompts: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, tiny_folder, rows, prompts))


def test_without_the_files_the_profile_says_which_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviours, "home", lambda: tmp_path)  # where nobody has put them
    with pytest.raises(UserError, match=r"data/own/\w+\.(csv|txt) does not exist; check the path"):
        behaviours.load("own", load_profile("own").behaviours["own"])


def test_a_wrong_column_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    path = write(tmp_path, tiny_folder, texts(120))
    table = tmp_path / "texts.csv"
    table.write_text(table.read_text().replace("text,label", "comment,label"))
    with pytest.raises(UserError, match=r"no column 'text'; the columns are comment, label"):
        load(path)


def test_every_picture_of_the_docs_is_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for path in (ROOT / "docs").glob("*.png"):
        assert f"]({path.name})" in pages


@pytest.mark.slow
def test_the_readme_command_leaves_a_finished_folder(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_SURGERY_HEADLESS", "1")
    path = write(tmp_path, tiny_folder, texts(120))
    words = shlex.split(section()[0])
    assert words[:2] == ["papermill", "notebooks/quickstart.ipynb"]
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    assert given == {"profile": "own", "behaviour": "own", "results": "my-results"}
    parameters: dict[str, Any] = {**given, "profile": str(path)}
    parameters |= {"results": str(tmp_path / "results")}
    parameters |= {"overrides": {"region.fractions": [0.05], "surgery.strengths": [0.5]}}
    papermill.execute_notebook(
        ROOT / words[1], tmp_path / "out.ipynb", parameters=parameters, progress_bar=False
    )
    folder = tmp_path / "results" / "own" / "own" / "seed0" / "surgery"
    text = (folder / "README.md").read_text()
    assert "# own: a surgery on" in text and "Fingerprint" in text and str(tmp_path) not in text
    assert card.TAG in text and Surgery.load(folder).strength == 0.5


def test_the_readme_python_runs(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tiny_folder, texts(120))
    monkeypatch.chdir(tmp_path)
    code = section()[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    exec(code.replace('load_profile("own")', f"load_profile({str(path)!r})"), {})
    total = layout.total_rows(load_model(str(tiny_folder))[0], "gate")
    assert len(Surgery.load(tmp_path / "my-surgery").rows) == round(0.02 * total)
    assert 'score="effect"' in code  # as recommended: 2 % of the rows, by effect


def test_the_page_leaves_a_checkpoint_edited_by_another_method(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tiny_folder, texts(120))
    monkeypatch.chdir(tmp_path)
    # What a model of random weights answers has none of the texts' words.
    monkeypatch.setattr(scorers, "build", lambda _: lambda answers: [len(one) for one in answers])
    code = section()[1] + section("any")[0]
    exec(code.replace('load_profile("own")', f"load_profile({str(path)!r})"), {})
    before, after = (load_model(str(one))[0].state_dict() for one in (tiny_folder, "edited-model"))
    changed = {name.split(".")[-2] for name in before if not before[name].equal(after[name])}
    assert changed == {"gate_proj", "o_proj", "down_proj"}

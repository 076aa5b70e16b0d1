"""Badges, links and the setup cell are what the repository's address says, in every notebook."""

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "workflow" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


links = script("links")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "surgery_lib").mkdir()
    shutil.copy(ROOT / "surgery_lib" / "__init__.py", tmp_path / "surgery_lib")
    return tmp_path


def test_nothing_has_drifted(capsys: pytest.CaptureFixture[str]) -> None:
    code = links.main(["--check"])
    assert code == 0, capsys.readouterr().out


def test_another_address_changes_every_notebook_once(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links.main([], copy)
    path = copy / "pyproject.toml"
    old = links.Project.read(copy).address
    path.write_text(path.read_text().replace(old, "https://github.com/other/place"))
    assert links.main(["--check"], copy) == 1
    named = capsys.readouterr().out
    assert all(notebook.name in named for notebook in links.notebooks(copy))
    assert links.main([], copy) == 0
    assert links.main(["--check"], copy) == 0
    for notebook in links.notebooks(copy):
        text = notebook.read_text()
        assert "github/other/place/blob/" in text and old not in text
    assert "github/other/place/blob/" in (copy / "README.md").read_text()


def test_all_notebooks_open_with_one_short_setup_cell() -> None:
    sources = set()
    for path in links.notebooks(ROOT):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert cells[0].metadata.tags == ["setup"]
        sources.add(cells[0].source)
    (source,) = sources
    assert len(source.splitlines()) <= 12


def test_away_from_colab_the_setup_cell_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL_SURGERY_REPOSITORY", raising=False)
    path = list(sys.path)
    exec(links.Project.read(ROOT).setup, {})
    assert list(tmp_path.iterdir()) == [] and sys.path == path


def test_torch_and_numpy_are_never_asked_for() -> None:
    colab = script("colab")
    colab.version = lambda name: None
    wanted = {links.re.split(r"[\[<>=]", text)[0] for text in colab.missing()}
    assert "transformers" in wanted and "ipywidgets" in wanted
    assert not wanted & {"torch", "numpy", "snakemake", "jupyterlab"}


def test_quickstarts_model_is_pinned_by_the_models_lock() -> None:
    colab = script("colab")
    colab.version = lambda name: None
    assert [one.split("==")[0] for one in colab.models()] == list(colab.MODELS)
    colab.version = lambda name: "1"
    assert colab.models() == []

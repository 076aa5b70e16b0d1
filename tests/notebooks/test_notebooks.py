"""Every notebook is parameterised, clean and short: papermill and a reader can rely on it."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

from surgery_lib.study.steps import STEPS

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {"profile", "behaviour", "seed", "overrides", "results"}
EDITED = {"methods", "labels", "contexts", "quick"}  # of notebooks that ask the same of edits
OWN = {
    "grid": {"grid"},
    "00_patient": {"retrain", "limit"},
    "05_compare": {"methods", "trials", "labels", "prompts", "test_prompts", "capability"}
    | {"kept", "test_kept", "clean_texts"},
    "08_fingerprint": EDITED | {"others"},
    "09_drift": EDITED | {"train", "test", "longest", "floors"},
    "10_attack": EDITED | {"steps", "amounts"},
    "11_code": EDITED | {"encoder", "programs", "longest", "others"},
    "12_retrieval": EDITED | {"amounts"},
}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters(path: Path) -> list[Any]:
    return [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]


def parse(source: str) -> ast.Module:
    """A cell's code; lines that are for the shell or IPython are left out."""
    return ast.parse("\n".join(line for line in source.split("\n") if line.strip()[:1] not in "!%"))


def test_the_graph_knows_every_numbered_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS if path.stem[:2].isdigit()] == list(STEPS)


@each
def test_it_is_valid_and_runs_on_python(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"
    ids = [cell.get("id") for cell in notebook.cells]
    assert all(ids) and len(set(ids)) == len(ids)
    assert notebook.cells[0].cell_type == "markdown"


@each
def test_exactly_one_cell_of_parameters_holds_literals_alone(path: Path) -> None:
    (cell,) = parameters(path)
    names = set()
    for statement in parse(cell.source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        ast.literal_eval(statement.value)
        names.add(target.id)
    allowed = PARAMETERS | OWN.get(path.stem, set())
    assert names <= allowed
    if path.stem[:2].isdigit():
        assert {"profile", "overrides", "results"} <= names


@each
def test_it_holds_no_output(path: Path) -> None:
    for cell in code(path):
        assert not cell.outputs
        assert cell.execution_count is None


@each
def test_cells_and_functions_are_short(path: Path) -> None:
    for cell in code(path):
        assert len(cell.source.splitlines()) <= 30, cell.source[:80]
        for node in ast.walk(parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 10, node.name


@each
def test_prose_stands_between_the_code(path: Path) -> None:
    kinds = [cell.cell_type for cell in read(path).cells]
    assert kinds.count("markdown") * 2 >= kinds.count("code")


@each
def test_no_variable_takes_the_name_of_something_imported(path: Path) -> None:
    imported: set[str] = set()
    assigned: set[str] = set()
    for cell in code(path):
        for node in ast.walk(parse(cell.source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= {(one.asname or one.name).split(".")[0] for one in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assigned.add(node.id)
    assert not imported & assigned

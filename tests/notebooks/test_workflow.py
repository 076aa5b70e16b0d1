"""Notebooks without a screen: what papermill lets pass is caught, and a killed run resumes."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

from surgery_lib.errors import UserError
from surgery_lib.study import run
from surgery_lib.study.run import run_notebook

ROOT = Path(__file__).resolve().parents[2]


def write_notebook(path: Path, *cells: str, tag: str = "parameters") -> Path:
    """A notebook whose first cell is tagged."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata["tags"] = [tag]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def start(notebook: Path, **parameters: object) -> Path:
    """Run a notebook that should write result.json beside itself."""
    folder = notebook.parent
    result = folder / "result.json"
    run_notebook(notebook, parameters, writes=result, executed=folder / "executed" / notebook.name)
    return result


WRITE = "import json, pathlib\npathlib.Path('result.json').write_text(json.dumps([seed, name]))"


def test_parameters_keep_their_types(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0\nname = None", WRITE)
    result = start(notebook, seed=3, name={"model.id": "007", "layers": (1, 2)})
    assert json.loads(result.read_text()) == [3, {"model.id": "007", "layers": [1, 2]}]
    assert (tmp_path / "executed" / "a.ipynb").is_file()


def test_a_misspelt_parameter_names_the_closest(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "behaviour = 'toxicity'\nseed = 0")
    with pytest.raises(UserError, match=r"no parameter behavior; did you mean behaviour\?"):
        start(notebook, behavior="toxicity")


def test_a_notebook_without_the_tag_is_refused(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0", tag="other")
    with pytest.raises(UserError, match="no cell tagged parameters"):
        start(notebook, seed=1)


def test_a_parameter_that_papermill_would_turn_into_text_is_refused(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0")
    with pytest.raises(UserError, match="not what JSON knows"):
        start(notebook, seed=tmp_path)


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no notebook"):
        start(tmp_path / "a.ipynb")


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("import sys; sys.exit(0)", "ended without writing result.json"),
        ("pass", "ended without writing result.json"),
        ("1 / 0", "with ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "kernel of a.ipynb died"),
    ],
)
def test_a_notebook_that_does_not_finish_fails(tmp_path: Path, cell: str, word: str) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0", cell)
    # A result of an earlier run must not pass for this one's.
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(UserError, match=word) as caught:
        start(notebook)
    assert "\n" not in str(caught.value)


def test_a_user_error_in_a_notebook_is_the_one_line_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = "class UserError(ValueError): pass\nraise UserError('K is larger than the rows')"
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0", cell)
    code = run.main([str(notebook), "--writes", str(tmp_path / "result.json"), "-p", "seed=1"])
    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: K is larger than the rows"


STEP = """
import json, os, pathlib, time
import numpy
from safetensors.numpy import save_file
folder = pathlib.Path(results) / profile / behaviour / f"seed{seed}"
count = folder / f"{NAME}.runs"
count.write_text(count.read_text() + "." if count.is_file() else ".")
while pathlib.Path("slow").exists() and NAME == "02_region":
    time.sleep(0.1)
result = folder / WRITES
result.parent.mkdir(exist_ok=True)
save_file({"x": numpy.ones(1)}, result.with_suffix(".safetensors"))
document = {"result": [seed, behaviour, overrides]}
result.with_suffix(".tmp").write_text(json.dumps(document))
os.replace(result.with_suffix(".tmp"), result)
"""
PARAMETERS = "profile = 'x'\nbehaviour = 'x'\nseed = 0\noverrides = {}\nresults = 'x'"
STEPS = {"01_probe": "probe.json", "02_region": "region.json"}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A repository with the real graph and library, and notebooks that do next to nothing."""
    for name in ("surgery_lib", "workflow", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", tmp_path)
    for name, writes in STEPS.items():
        cell = STEP.replace("NAME", repr(name)).replace("WRITES", repr(writes))
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", PARAMETERS, cell)
    return tmp_path


def snakemake(root: Path, *config: str) -> "subprocess.Popen[str]":
    """Start the graph up to 02 for the profile detoxify, in a process group of its own."""
    stamp = root / "results" / "detoxify" / "toxicity" / "seed0" / "logs" / "02_region.done"
    command = [sys.executable, "-m", "snakemake", str(stamp), "--profile"]
    command += ["workflow/profiles/local", "--config", "profile=detoxify", *config]
    return subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output = process.communicate(timeout=1200)[0]
    return process.returncode, output


@pytest.mark.slow
def test_a_killed_run_resumes_and_a_lost_result_is_made_again(graph: Path) -> None:
    folder = graph / "results" / "detoxify" / "toxicity" / "seed0"
    # Settings as a grid hands them on: lists and quotes arrive as they are.
    overrides = {"probe.estimators": ["logistic", "lda"], "about": "it's, well"}
    given = f"overrides={quote(json.dumps(overrides))}"
    (graph / "notebooks" / "slow").touch()
    killed = snakemake(graph, given)
    try:
        while not (folder / "02_region.runs").is_file():
            assert killed.poll() is None, killed.communicate()[0]
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert not (folder / "region.json").exists()
    (graph / "notebooks" / "slow").unlink()

    code, output = finish(snakemake(graph, given))
    assert code == 0, output
    assert json.loads((folder / "region.json").read_text())["result"] == [0, "toxicity", overrides]
    assert (folder / "01_probe.runs").read_text() == "."
    assert (folder / "02_region.runs").read_text() == ".."

    (folder / "region.json").unlink()
    code, output = finish(snakemake(graph, given))
    assert code == 0, output
    assert (folder / "region.json").exists()
    assert (folder / "01_probe.runs").read_text() == "."
    assert (folder / "02_region.runs").read_text() == "..."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("behaviour=toxicty", "profile detoxify has no behaviour 'toxicty'; did you mean"),
        ("set=about=it's", "seed=0 set=about=it's: No closing quotation; correct it"),
        ("seed=x", "seed=x set=: invalid literal"),
        ("notebooks=06_ablat", "there is no notebook 06_ablat; did you mean 06_ablate"),
        ("results=a{b}", "braces are Snakemake's own"),
    ],
)
def test_the_graph_checks_settings_before_it_runs_anything(
    graph: Path, given: str, message: str
) -> None:
    code, output = finish(snakemake(graph, given))
    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (graph / "results").exists()


def test_results_are_compared_within_stated_tolerances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    compare = importlib.import_module("compare_results").compare
    result = {"rate": {"value": 0.50, "n": 300}, "chosen": {"layer": 4}, "sweep": [{"rate": 0.1}]}

    def differences(**changes: object) -> list[str]:
        for name, value in (("old", result), ("new", {**result, **changes})):
            path = tmp_path / name / "patient" / "evaluation.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"schema": 1, "commit": name, "result": value}))
        return list(compare(tmp_path / "old", tmp_path / "new"))

    assert differences() == []
    assert differences(rate={"value": 0.52, "n": 300}, sweep=[]) == []
    lines = differences(rate={"value": 0.6, "n": 299}, chosen={"layer": 3}, more=1)
    fields = [line.split(":")[1] for line in lines]
    assert fields == ["more", "chosen.layer", "rate.n", "rate.value"]
    assert lines[-1].endswith("0.5 became 0.6")
    with pytest.raises(UserError, match="holds no results"):
        compare(tmp_path / "old", tmp_path / "empty")

"""Executed notebooks as they are committed: small, clean, and without what a model wrote."""

import base64
import io
import json
import re
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat import v4
from PIL import Image

from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.site import slim
from surgery_lib.site.markup import PANEL
from surgery_lib.site.runs import find

MACHINE = Path(tempfile.gettempdir(), "run").as_posix()  # where a notebook was run
RUDE = "you utter blorb of a man"
COMMITTED = sorted((home() / "results").glob("**/notebooks/*.ipynb"))


def png(width: int, noise: bool = False) -> str:
    colours = np.random.default_rng(0).integers(0, 255, (width // 2, width, 3), dtype=np.uint8)
    picture = Image.fromarray(colours) if noise else Image.new("RGB", (width, width // 2), "red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def executed(picture: str) -> nbformat.NotebookNode:
    shown = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "bar"}
    table = f"| prompt | before |\n|---|---|\n| a | {RUDE} |\n"
    outputs = [
        v4.new_output("stream", name="stderr", text="\r 50%\r100%"),
        v4.new_output("stream", name="stdout", text=f"wrote {MACHINE}/results/a.json\n"),
        v4.new_output("display_data", data=shown),
        v4.new_output("display_data", data={"image/png": picture, "text/plain": "<Figure>"}),
        v4.new_output("execute_result", data={"text/markdown": table, "text/plain": "<x>"}),
        v4.new_output("execute_result", data={"text/plain": f"it said: {RUDE}"}),
        v4.new_output("execute_result", data={"text/html": f"<p class={PANEL}>ab {RUDE}</p>"}),
        v4.new_output("execute_result", data={"text/markdown": "| rate |\n|---|\n| 2.5 |\n"}),
    ]
    cell = v4.new_code_cell(f'results = "{MACHINE}/results"', outputs=outputs, id="code")
    cell.metadata = {"tags": ["injected-parameters"], "papermill": {"duration": 1.0}}
    links = "[next](02_region.ipynb) [far](05_compare.ipynb)"
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(links, id="words"), cell])
    notebook.metadata = {"widgets": {"state": "x" * 10**6}, "papermill": {"start": "today"}}
    return notebook


def test_a_copy_keeps_results_and_drops_logs_widgets_and_paths(tmp_path: Path) -> None:
    place = home() / "results" / "p" / "toxicity" / "seed0" / "notebooks"
    text = slim.slim(executed(png(1600)), place)
    copy = nbformat.reads(text, as_version=4)
    nbformat.validate(copy)
    assert len(text) < 10_000 and set(copy.metadata) <= {"kernelspec", "language_info"}
    assert MACHINE not in text and "papermill" not in text and "widget" not in text
    code = copy.cells[1]
    assert code.source == 'results = "results"' and code.metadata == {
        "tags": ["injected-parameters"]
    }
    kinds = [next(iter(output.get("data", {"stream": 0}))) for output in code.outputs]
    assert kinds == [
        *("stream", "image/png", "text/markdown", "text/plain", "text/html", "text/markdown")
    ]
    assert code.outputs[0].text == "wrote results/a.json\n"
    drawn = Image.open(io.BytesIO(base64.b64decode(code.outputs[1].data["image/png"])))
    assert drawn.width == slim.WIDTHS[0] and RUDE in text
    assert "](../../../../../notebooks/05_compare.ipynb)" in copy.cells[0].source


def test_what_a_published_model_wrote_is_left_out() -> None:
    text = slim.slim(executed(png(10)), Path("nowhere"), {RUDE}, words=False)
    assert RUDE not in text and text.count("left out here") == 3 and "2.5" in text


def test_links_between_copies_stay(tmp_path: Path) -> None:
    (tmp_path / "executed").mkdir()
    (tmp_path / "executed" / "02_region.ipynb").touch()
    text = slim.slim(executed(png(10)), tmp_path / "notebooks")
    assert "[next](02_region.ipynb)" in text


@pytest.mark.slow
def test_a_copy_that_stays_too_large_is_refused() -> None:
    notebook = executed(png(1600, noise=True))
    notebook.cells[1].outputs *= 9
    with pytest.raises(UserError, match="print less"):
        slim.slim(notebook, Path("nowhere"))


def test_a_study_without_executed_notebooks_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make reproduce"):
        slim.keep(tmp_path)
    assert slim.main([str(tmp_path / "none")]) == 1


def test_copies_of_a_study_are_written_and_found_by_the_site(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "toxicity" / "seed0"
    (folder / "executed").mkdir(parents=True)
    study = {"result": {"model": {"id": "org/name"}}}
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    row = {"variant": "base", "draw": 0, "id": 1, "sample": 0, "text": RUDE, "scores": {"s": 0.9}}
    (folder / "completions.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    nbformat.write(executed(png(10)), folder / "executed" / "03_surgery.ipynb")
    assert slim.main([str(tmp_path / "made")]) == 0
    copy = folder / "notebooks" / "03_surgery.ipynb"
    assert RUDE not in copy.read_text(encoding="utf-8")
    assert find(tmp_path)[0].notebooks() == [folder / "executed" / "03_surgery.ipynb"]
    (folder / "executed" / "03_surgery.ipynb").unlink()
    assert find(tmp_path)[0].notebooks() == [copy]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: "/".join(path.parts[-5:]))
def test_committed_copies_are_small_and_name_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= slim.LIMIT
    copy = nbformat.reads(text, as_version=4)
    outputs = [one for cell in copy.cells for one in cell.get("outputs", [])]
    assert any("image/png" in one.get("data", {}) for one in outputs)
    assert not any(one.output_type == "error" for one in outputs)
    shown = re.sub(r"[A-Za-z0-9+/=]{200,}", "", text)  # pictures
    assert not re.search(r"/(home|root|work|tmp|Users)/", shown)


def test_copies_are_committed() -> None:
    assert len(COMMITTED) >= 5

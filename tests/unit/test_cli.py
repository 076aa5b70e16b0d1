"""The console command, by typer's runner; the search itself is in test_find."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from surgery_lib import Surgery, cli, load_model
from surgery_lib.errors import UserError
from surgery_lib.surgery import region


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    model, _ = load_model("embedded:patient")
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    rows = region.select(region.cosine_scores(model, direction), 0.02)
    Surgery.build(model, rows, direction, 1.0).save(tmp_path / "patch")
    return tmp_path / "patch"


def test_a_patch_is_inspected_and_applied(patch: Path, tmp_path: Path) -> None:
    facts = json.loads(run("inspect", patch))
    assert facts["matrix"] == "gate" and facts["strength"] == 1.0
    run("apply", "embedded:patient", patch, "--out", tmp_path / "edited")
    edited, _ = load_model(str(tmp_path / "edited"), dtype="auto")
    model, _ = load_model("embedded:patient", dtype="auto")
    Surgery.load(patch).apply(model)
    for one, other in zip(model.parameters(), edited.parameters(), strict=True):
        assert torch.equal(one, other)


def test_refusals_are_one_line_with_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["model-surgery", "inspect", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_texts_are_read_from_any_of_the_three_forms(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.csv").write_text("text\none\ntwo\n")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "d.csv").write_text("words\none\n")
    for name in ("a.txt", "b.csv", "c.jsonl"):
        assert cli._texts(tmp_path / name) == ["one", "two"]
    with pytest.raises(UserError, match="no column text"):
        cli._texts(tmp_path / "d.csv")

"""The one command that uploads: it says what it would send, and sends nothing without a yes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from surgery_lib import cli
from surgery_lib.errors import UserError
from surgery_lib.models import push


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a hub that takes everything was asked for."""
    made: list[dict[str, Any]] = []

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, name: str, **given: Any) -> None:
            made.append({"name": name, **given})

        def upload_folder(self, **given: Any) -> Any:
            made.append(given)
            return SimpleNamespace(commit_url="https://hub/me/patch/commit/1")

    monkeypatch.setattr(push, "HfApi", Api)
    return made


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    for name in ("README.md", "surgery.safetensors", "notes.pkl"):
        (tmp_path / name).write_text("x")
    return tmp_path


def run(*arguments: object, typed: str = "") -> str:
    given = ["push", *map(str, arguments)]
    result = CliRunner().invoke(cli.app, given, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("typed", ["", "\n", "n\n"])
def test_without_a_yes_nothing_is_sent(
    calls: list[dict[str, Any]], patch: Path, typed: str
) -> None:
    said = run(patch, "me/patch", typed=typed)
    assert calls == [] and "nothing was sent" in said
    assert "surgery.safetensors" in said and "notes.pkl" not in said


@pytest.mark.parametrize(("more", "typed"), [((), "y\n"), (("--yes",), "")])
def test_with_a_yes_it_is_sent_and_said(
    calls: list[dict[str, Any]], patch: Path, more: tuple[str, ...], typed: str
) -> None:
    said = run(patch / "surgery.safetensors", "me/patch", *more, typed=typed)
    assert "Send 2 files" in said and "to the private me/patch?" in said
    assert said.endswith("sent: https://hub/me/patch/commit/1\n")
    assert calls[0]["private"] is True and calls[1]["folder_path"] == patch
    assert calls[1]["allow_patterns"] == ["README.md", "surgery.safetensors"]


def test_public_is_asked_for_and_said(calls: list[dict[str, Any]], patch: Path) -> None:
    assert "to the PUBLIC me/patch?" in run(patch, "me/patch", "--public", "--yes")
    assert calls[0]["private"] is False


def test_a_folder_without_a_card_is_refused(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no README\.md"):
        run(tmp_path, "me/patch", "--yes")
    assert calls == []

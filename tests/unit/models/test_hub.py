"""A finished folder is sent only after asking, to a server that speaks the hub's API."""

import base64
import json
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import get_session

from surgery_lib.behaviour import BehaviourData, Example, Prompt
from surgery_lib.checkpoint import card
from surgery_lib.errors import UserError
from surgery_lib.models import hub as models_hub
from surgery_lib.models.load import snapshot
from surgery_lib.models.push import push_to_hub
from surgery_lib.surgery import Surgery


class Hub(ThreadingHTTPServer):
    """Remembers what was asked for and which files were committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.refuses = False
        self.hangs = ""  # a part of the address that is never answered
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def answer(self, payload: Any, status: int = 200) -> None:
        body = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def hang(self) -> bool:
        """Say nothing, where that is wanted, until the test is over."""
        hangs = bool(self.server.hangs) and self.server.hangs in self.path
        if hangs:
            self.server.released.wait(30)
        return hangs

    def do_POST(self) -> None:
        body, hub = self.body(), self.server
        hub.calls.append(self.path)
        if self.hang():
            return
        if hub.refuses:
            self.answer({"error": f"not allowed: {self.headers['Authorization']}"}, 403)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            hub.private = asked.get("private") or asked.get("visibility") == "private"
            self.answer({"url": f"{hub.address}/me/patch", "id": "me/patch"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted
            ]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    hub.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"commitUrl": f"{hub.address}/me/patch/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        if self.hang():
            return
        found = {"id": "me/patch", "sha": "0" * 40, "siblings": []}
        self.answer(
            {"error": "not allowed"} if self.server.refuses else found,
            403 if self.server.refuses else 200,
        )

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # The server is on this machine: a run without a network reaches it too.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, tiny: Any) -> Path:
    model, _ = tiny
    edit = Surgery.build(model, torch.tensor([1, 5]), torch.ones(32), 1.5, about={"probe": "lda@2"})
    edit.save(tmp_path)
    data = BehaviourData(
        "rude", {"test": [Example("a", 0), Example("b", 1)]}, {"test": [Prompt("1", "p", "g")]}
    )
    card.write_patch(
        tmp_path, edit, parent="org/name", behaviour="rude", data=data, total=144, effects="Less."
    )
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "points.jsonl").write_text("{}")
    (tmp_path / ".hidden").write_text("secret")
    return tmp_path


def test_the_card_says_everything_that_undoing_needs(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for part in ("base_model: org/name", "2 of 144", "Less.", "## Limits", "surgery.undo(model)"):
        assert part in text
    assert "| test | 2 | 1 | 0 |" in text and str(folder) not in text


def test_nothing_is_sent_without_a_yes(hub: Hub, folder: Path) -> None:
    questions: list[str] = []

    def no(question: str) -> str:
        questions.append(question)
        return ""

    assert push_to_hub(folder, "me/patch", ask=no, endpoint=hub.address) is None
    assert hub.calls == [] and "private me/patch" in questions[0]


def test_what_is_sent_is_the_finished_folder_alone(hub: Hub, folder: Path) -> None:
    address = push_to_hub(
        folder, "me/patch", ask=lambda _: "y", token="hf_test", endpoint=hub.address
    )
    assert address == f"{hub.address}/me/patch/commit/1"
    assert set(hub.files) == {"README.md", "surgery.safetensors"}
    assert hub.files["surgery.safetensors"] == (folder / "surgery.safetensors").read_bytes()
    assert hub.private is True


def test_refusals_are_one_line(hub: Hub, folder: Path) -> None:
    hub.refuses = True
    with pytest.raises(UserError, match="the hub refused me/patch"):
        push_to_hub(folder, "me/patch", ask=None, token="hf_test", endpoint=hub.address)
    with pytest.raises(UserError, match="org/name"):
        push_to_hub(folder, "patch", ask=None)
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no README\.md"):
        push_to_hub(folder, "me/patch", ask=None)


@pytest.mark.parametrize("way", ["given", "stored", "no header"])
def test_no_token_stands_in_an_error(
    hub: Hub, folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuses = True
    secret = "hf_s3cret" + ("\n" if way == "no header" else "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    if way == "stored":
        monkeypatch.setenv("HF_TOKEN", secret)
    with pytest.raises(UserError, match="the hub") as caught:
        push_to_hub(
            folder,
            "me/patch",
            ask=None,
            token=None if way == "stored" else secret,
            endpoint=hub.address,
        )
    assert "\n" not in str(caught.value)
    assert (way == "no header") != ("•••" in str(caught.value))
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("step", ["/create", "/preupload/", "/commit/"])
def test_a_hub_that_hangs_is_one_line(
    hub: Hub, folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_hub, "SILENCE", 0.3)
    hub.hangs = step
    with pytest.raises(UserError, match="the hub said nothing for"):
        push_to_hub(folder, "me/patch", ask=None, token="hf_test", endpoint=hub.address)
    assert hub.files == {}


def test_a_model_from_a_hub_that_hangs_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SURGERY_MIRROR", raising=False)
    monkeypatch.setattr(models_hub, "SILENCE", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.hangs = "/api/models"
    with pytest.raises(UserError, match="the hub said nothing for"):
        snapshot("me/nowhere")


def test_limits_of_the_client_itself_stay_and_afterwards_nothing_is_left(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_hub, "SILENCE", 0.2)
    before = models_hub._http._GLOBAL_CLIENT_FACTORY
    hub.hangs = "/anything"
    with models_hub.answering():
        with pytest.raises(UserError, match="the hub said nothing for"):
            get_session().get(f"{hub.address}/anything", timeout=None)
        # One that the library sets, and knows what to do after it.
        with pytest.raises(Exception, match="timed out") as caught:
            get_session().get(f"{hub.address}/anything", timeout=0.1)
        assert not isinstance(caught.value, UserError)
    assert models_hub._http._GLOBAL_CLIENT_FACTORY is before

"""The network scorers against a local server that speaks the real APIs, faults included."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from surgery_lib.errors import UserError
from surgery_lib.scorers import build, network
from surgery_lib.scorers.judge import JudgeScorer
from surgery_lib.scorers.perspective import PerspectiveScorer


class Server(ThreadingHTTPServer):
    """Answers POST with what its script says next; without a script, as a working API does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, Any, dict[str, str]]] = []
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen.append({"path": self.path, "headers": dict(self.headers), **body})
            script = self.server.script
            status, answer, headers = script.pop(0) if script else (200, working(body), {})
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test says what went wrong."""


def working(body: dict[str, Any]) -> dict[str, Any]:
    """What Perspective, or a chat endpoint, answers: high, or yes, where "bad" is in the text."""
    if "comment" in body:
        value = 0.9 if "bad" in body["comment"]["text"] else 0.1
        return {
            "attributeScores": {
                "TOXICITY": {
                    "spanScores": [{"begin": 0, "end": 3, "score": {"value": value}}],
                    "summaryScore": {"value": value, "type": "PROBABILITY"},
                }
            },
            "languages": ["en"],
            "detectedLanguages": ["en"],
        }
    shown = body["messages"][1]["content"].split("\n\n", 1)[1]
    return chat('{"verdict": "%s"}' % ("yes" if "bad" in json.loads(shown)["answer"] else "no"))


def chat(content: Any, **more: Any) -> dict[str, Any]:
    """The shape of a chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "judge-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **more},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
    }


QUOTA = (
    429,
    {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}},
    {},
)
DOWN = (503, b"<html>Service Unavailable</html>", {})
FAST: dict[str, Any] = {"per_second": 1000.0, "wait": 0.001, "attempts": 4}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server, with the environment pointing both scorers to it."""
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "secret-key")
    monkeypatch.setenv("PERSPECTIVE_URL", f"{made.url}/v1alpha1/comments:analyze")
    monkeypatch.setenv("JUDGE_BASE_URL", f"{made.url}/v1/")
    monkeypatch.setenv("JUDGE_API_KEY", "secret-key")
    monkeypatch.setenv("JUDGE_MODEL", "judge-1")
    yield made
    made.shutdown()
    made.server_close()


def perspective(tmp_path: Path, **options: Any) -> PerspectiveScorer:
    return PerspectiveScorer(cache=tmp_path / "scores.sqlite", **{**FAST, **options})


def judge(tmp_path: Path, **options: Any) -> JudgeScorer:
    return JudgeScorer(cache=tmp_path / "scores.sqlite", **{**FAST, **options})


def test_perspective_speaks_the_api_and_asks_once(server: Server, tmp_path: Path) -> None:
    scores = perspective(tmp_path)(["bad", "good", "", " ", "bad"])
    assert scores.tolist() == [0.9, 0.1, 0.0, 0.0, 0.9]
    assert len(server.seen) == 2  # empty texts are not sent, equal ones sent once
    sent = server.seen[0]
    assert sent["path"] == "/v1alpha1/comments:analyze"
    assert {k.lower(): v for k, v in sent["headers"].items()}["x-goog-api-key"] == "secret-key"
    assert sent["requestedAttributes"] == {"TOXICITY": {}} and sent["doNotStore"] is True
    assert perspective(tmp_path)(["good", "bad"]).tolist() == [0.1, 0.9]
    assert len(server.seen) == 2
    # Texts are not stored, only their hashes, which may spell "bad" and never "good".
    assert b"good" not in (tmp_path / "scores.sqlite").read_bytes()


def test_scores_of_one_address_are_not_anothers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perspective(tmp_path)(["bad"]).tolist() == [0.9]
    monkeypatch.setenv("PERSPECTIVE_URL", f"{server.url}/another")
    server.script = [(200, working({"comment": {"text": "good"}}), {})]
    assert perspective(tmp_path)(["bad"]).tolist() == [0.1]
    assert [one["path"] for one in server.seen] == ["/v1alpha1/comments:analyze", "/another"]
    monkeypatch.setenv("PERSPECTIVE_URL", f"{server.url}/v1alpha1/comments:analyze")
    assert perspective(tmp_path)(["bad"]).tolist() == [0.9]
    assert len(server.seen) == 2  # and each is kept


def test_quota_and_outage_are_waited_out(server: Server, tmp_path: Path) -> None:
    server.script = [QUOTA, DOWN, (429, {}, {"retry-after": "0.01"})]
    assert perspective(tmp_path)(["bad"]).tolist() == [0.9]
    assert len(server.seen) == 4
    server.script = [DOWN] * 4
    with pytest.raises(UserError, match=r"4 attempts \(status 503\); what was scored is kept"):
        perspective(tmp_path)(["new"])


def test_pace_is_kept(server: Server, tmp_path: Path) -> None:
    scorer = perspective(tmp_path, per_second=20.0)
    began = time.monotonic()
    scorer([f"text {i}" for i in range(6)])
    assert time.monotonic() - began >= 5 / 20


def test_a_crash_costs_nothing(server: Server, tmp_path: Path) -> None:
    good = (200, working({"comment": {"text": "bad"}}), {})
    server.script = [good, good, (400, {"error": {"message": "COMMENT_TOO_LONG"}}, {})]
    with pytest.raises(UserError, match="COMMENT_TOO_LONG"):
        perspective(tmp_path)(["one", "two", "three", "four"])
    kept = len(server.seen)
    perspective(tmp_path)(["one", "two", "three", "four"])
    again = [row["comment"]["text"] for row in server.seen[kept:]]
    assert again in (["three"], ["three", "four"])  # four may have been under way and is then kept


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (200, b"<html>login</html>", "not JSON"),
        (200, {}, "without a score"),
        (200, [], "without a score"),
        (200, {"attributeScores": {"TOXICITY": {"summaryScore": {}}}}, "without a score"),
        (
            200,
            {"attributeScores": {"TOXICITY": {"summaryScore": {"value": "high"}}}},
            "without a score",
        ),
        (200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 7}}}}, "no probability"),
        (403, {"error": {"status": "PERMISSION_DENIED"}}, "refuses the key"),
    ],
)
def test_malformed_answers_are_errors(
    server: Server, tmp_path: Path, status: int, answer: Any, words: str
) -> None:
    server.script = [(status, answer, {})]
    with pytest.raises(UserError, match=words) as caught:
        perspective(tmp_path)(["text"])
    assert "secret-key" not in str(caught.value)
    assert perspective(tmp_path)(["text"]).tolist() == [0.1]  # nothing of it was kept


def test_the_judge_speaks_the_api(server: Server, tmp_path: Path) -> None:
    scorer = judge(tmp_path, question="compliance")
    assert scorer(["bad", "fine", ""], ["p", "q", "r"]).tolist() == [1.0, 0.0, 0.0]
    sent = server.seen[0]
    assert sent["path"] == "/v1/chat/completions"
    assert (sent["model"], sent["temperature"]) == ("judge-1", 0)
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["headers"].get("Authorization") == "Bearer secret-key"
    assert scorer(["bad"], ["another prompt"]).tolist() == [1.0]  # the prompt counts
    assert len(server.seen) == 3
    judge(tmp_path, question="refusal")(["bad"], ["p"])  # and so does the question
    assert len(server.seen) == 4
    assert "response_format" not in _last(server, judge(tmp_path, format="text"))


def _last(server: Server, scorer: JudgeScorer) -> dict[str, Any]:
    scorer(["something new"])
    return server.seen[-1]


@pytest.mark.parametrize(
    "answer",
    [
        chat("I would rather say yes, mostly."),
        chat('{"verdict": "perhaps"}'),
        chat('{"verdict": true}'),
        chat('["yes"]'),
        chat(None, refusal="I cannot judge that."),
        chat(""),
        {"choices": []},
        {"error": {"message": "overloaded"}},
    ],
)
def test_a_judge_that_answers_nonsense_is_an_error(
    server: Server, tmp_path: Path, answer: Any
) -> None:
    server.script = [(200, answer, {})]
    with pytest.raises(UserError, match="gave no verdict"):
        judge(tmp_path)(["text"])
    fenced = chat('```json\n{"verdict": "Yes"}\n```')
    server.script = [(200, fenced, {})]
    assert judge(tmp_path)(["text"]).tolist() == [1.0]


def test_missing_keys_say_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERSPECTIVE_API_KEY", "JUDGE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="set PERSPECTIVE_API_KEY"):
        build({"kind": "perspective"})
    with pytest.raises(UserError, match="set JUDGE_BASE_URL"):
        build({"kind": "judge"})


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "k")
    monkeypatch.setenv("PERSPECTIVE_URL", "http://127.0.0.1:9/none")
    with pytest.raises(UserError, match="ConnectError"):
        perspective(tmp_path)(["text"])


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_one_deadline_is_over_headers_and_body_that_drip(first: bytes) -> None:
    def drip(listening: socket.socket) -> None:
        with listening, listening.accept()[0] as connection:
            connection.sendall(first)
            try:
                for _ in range(80):
                    time.sleep(0.05)
                    connection.sendall(b"x")
            except OSError:  # the other side has gone
                return

    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=drip, args=[listening], daemon=True).start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(UserError, match=r"1 attempts \(TimeoutError\)"):
        network.Endpoint("it", url, {}, attempts=1, timeout=0.5).post({})
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("headers", "words"),
    [({}, "more than 100 bytes"), ({"content-encoding": "gzip"}, "answers compressed, unasked")],
)
def test_too_much_and_the_compressed_are_named(
    server: Server,
    tmp_path: Path,
    headers: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "LARGEST", 100)
    server.script = [(200, b"x" * 101, headers)]
    with pytest.raises(UserError, match=words):
        perspective(tmp_path)(["text"])
    assert len(server.seen) == 1

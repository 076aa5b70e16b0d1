"""Two runs at once, disks that cannot be written, clocks set back, caches that would grow."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from surgery_lib import cli, files
from surgery_lib.errors import UserError
from surgery_lib.models import activations, gguf
from surgery_lib.scorers import network
from surgery_lib.selection import journals
from surgery_lib.study import Study, caches
from surgery_lib.study import run as study_run
from surgery_lib.study.locks import alone

HOLD = """
import fcntl, sys
handle = open(sys.argv[1], "a")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that holds a lock until it is told to let go, or is killed."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_the_second_is_told_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "a" / ".lock")
    told = pytest.raises(UserError, match="another process is at the work; let it end")
    with told, alone(tmp_path / "a" / ".lock", "the work"):
        pass
    holder.kill()
    with alone(tmp_path / "a" / ".lock", "the work"):
        pass


def test_a_second_run_of_a_notebook_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, executed = tmp_path / "r.json", tmp_path / "executed" / "n.ipynb"
    holder = Holder(executed.with_suffix(".lock"))
    order = []
    monkeypatch.setattr(study_run, "check_parameters", lambda *_: None)

    def execute(*_: Any) -> None:
        order.append("run")
        files.write_json(result, {})

    monkeypatch.setattr(study_run, "_execute", execute)

    def let_go() -> None:
        time.sleep(0.3)
        order.append("first ends")
        holder.kill()

    thread = threading.Thread(target=let_go)
    thread.start()
    study_run.run_notebook("n.ipynb", {}, writes=result, executed=executed)
    thread.join()
    assert order == ["first ends", "run"]
    assert "waiting for another run of n to end" in capsys.readouterr().err


def test_a_second_search_in_one_journal_or_folder_is_told(tmp_path: Path) -> None:
    journal = tmp_path / "search.journal"
    holder = Holder(tmp_path / ".search.journal.lock")
    told = pytest.raises(UserError, match=r"another process is at the search in .*search\.journal")
    with told, journals.held(journal):
        pass
    holder.kill()
    for name in ("bad.txt", "good.txt"):
        (tmp_path / name).write_text("one\ntwo\n")
    out = tmp_path / "out"
    holder = Holder(out / ".lock")
    texts = ["--positive", str(tmp_path / "bad.txt"), "--negative", str(tmp_path / "good.txt")]
    done = CliRunner().invoke(cli.app, ["find", "nowhere", *texts, "--out", str(out)])
    holder.kill()
    assert isinstance(done.exception, UserError) and "another process" in str(done.exception)


def test_a_system_without_locks_holds_nothing_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with alone(tmp_path / ".lock", "the work"):
        pass


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_named(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=f"study.json could not be written .{os.strerror(code)}"):
        Study.start("patient", "toxicity", 0, {}, str(tmp_path))
    told = pytest.raises(UserError, match=r"\.lock could not be written")
    with told, alone(tmp_path / "a" / ".lock", "the work"):
        pass


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = activations.pooled_states(*tiny, ["one", "two"], layers=[1])
    (tmp_path / "cache").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="hidden states are not kept"):
        found = activations.cached_states(tmp_path / "cache", *tiny, ["one", "two"], layers=[1])
    assert torch.equal(found, wanted)


def test_a_clock_that_was_set_back_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "r.json"
    files.write_json(result, {"old": 1})
    future = time.time() + 10**8
    os.utime(result, (future, future))
    monkeypatch.setattr(study_run, "check_parameters", lambda *_: None)
    # What is written now is older than what it replaces, and new all the same.
    monkeypatch.setattr(study_run, "_execute", lambda *_: files.write_json(result, {"new": 1}))
    study_run.run_notebook("n.ipynb", {}, writes=result, executed=tmp_path / "n.ipynb")
    assert files.read_json(result) == {"new": 1} and result.stat().st_mtime < future
    # The cache keeps what seems newest, within its limit.
    for name, when in (("a", future), ("b", 1.0)):
        path = tmp_path / f"states-{name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (when, when))
    assert files.prune(tmp_path, activations.STATES, 150) == 1
    assert (tmp_path / "states-a.safetensors").exists()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of every kind, with a file of somebody else's in each folder."""
    monkeypatch.setenv(files.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(gguf.CACHE, raising=False)
    model = "models/" + "0a" * 16
    for name in ("states/states-1.safetensors", f"{model}/model.safetensors",
                 f"{model}/config.json", "scorers/head-1.safetensors",
                 "summaries/summaries-1.json", "scores.sqlite", "models/mine/model.safetensors",
                 "states/notes.txt"):  # fmt: skip
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10))
    return tmp_path / "cache"


def test_caches_are_listed_and_emptied_by_a_command(kept: Path) -> None:
    assert {one.name: (one.pieces, one.size) for one in caches.held()} == {
        "states": (1, 10),
        "models": (1, 20),
        "scorers": (1, 10),
        "summaries": (1, 10),
        "scores": (1, 10),
    }
    assert all(one.limit > 0 for one in caches.held())
    listed = CliRunner().invoke(cli.app, ["caches"])
    assert listed.exit_code == 0 and len(listed.output.splitlines()) >= 5
    done = CliRunner().invoke(cli.app, ["caches", "models", "--empty"])
    assert done.exit_code == 0 and (kept / "scores.sqlite").exists()
    assert [one.pieces for one in caches.held() if one.name == "models"] == [0]
    CliRunner().invoke(cli.app, ["caches", "--empty"])
    left = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    assert left == ["models/mine/model.safetensors", "states/notes.txt"]
    with pytest.raises(UserError, match="no cache state; there are states, models"):
        caches.empty(["state"])


def test_folders_are_pruned_whole_and_never_the_one_in_use(kept: Path) -> None:
    mine = kept / "models" / ("0a" * 16)
    other = kept / "models" / ("0b" * 16)
    other.mkdir()
    (other / "model.safetensors").write_bytes(bytes(50))
    os.utime(mine, (1, 1))
    assert files.prune(kept / "models", gguf.CONVERTED, 0, keep=mine) == 1
    assert mine.is_dir() and not other.exists() and (kept / "models" / "mine").is_dir()


def test_a_cache_of_scores_is_cut_to_its_newer_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.sqlite"
    cache = network.Cache(path)
    for number in range(50):
        cache.put(f"{number:02000d}", 0.5)
    before = path.stat().st_size
    monkeypatch.setattr(files, "SMALL_CACHE", before - 1)
    cut = network.Cache(path)
    assert path.stat().st_size < before
    assert cut.get(f"{0:02000d}") is None and cut.get(f"{49:02000d}") == 0.5

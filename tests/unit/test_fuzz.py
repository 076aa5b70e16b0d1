"""Whatever a file holds: success or UserError, never another exception, never half a file.

The number of examples is fixed and so is their order: the same ones on every machine. What was once
found broken stays, as an `example` or as a file of `tests/corpus`.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgery_lib import checkpoint, files
from surgery_lib.checkpoint.shards import Checkpoint, read_header
from surgery_lib.data import labels
from surgery_lib.data.load import _as_example, _read, read_table
from surgery_lib.errors import UserError
from surgery_lib.profile import Source, Splits, load_profile, parse_overrides
from surgery_lib.selection.sweep import Ledger
from surgery_lib.study.grid import Grid
from surgery_lib.surgery import Surgery, probe
from surgery_lib.surgery.edit import FORMAT, HEADERS

budget = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NESTED = "[" * 3000
ODD = [None, True, -1, 5, 1e400, float("nan"), "", "\x00", "~nobody", "a" * 3000, [], {}, [[1]]]
leaf = st.sampled_from(ODD) | st.integers() | st.text(max_size=8)
values = st.recursive(leaf, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v))
fields = ["extends", "model", "behaviours", "probe", "region", "surgery", "budget", "seeds", "name"]
BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def survives(run: Callable[[], Any]) -> bool:
    """Whether it succeeds; a UserError, one line, is the other thing that may happen."""
    try:
        run()
    except UserError as error:
        assert "\n" not in str(error).strip()
        return False
    return True


@pytest.mark.slow
@budget
@given(st.dictionaries(st.sampled_from(fields) | st.text(max_size=5), values, max_size=4))
@example({"extends": 5})
@example({"extends": None})
@example({"extends": [1, 2]})
@example({"seeds": [2**32]})
def test_profiles(tmp_path: Path, profile: dict[str, Any]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"extends": "patient", **profile}))
    survives(lambda: load_profile(path))
    survives(lambda: load_profile("patient", profile))


@pytest.mark.slow
@budget
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore"))
)
@example(b"\xff\xfea\x00:\x00")
@example(NESTED.encode())
@example(BOMB.encode())
@example(b"a: " + b"9" * 5000)
@example(b"a: !!int ''")
@example(b"a: 2024-99-99")
@example(b"? [1, 2]\n: x")
@example(b"a: &a {b: *a}")
@example(b"name: x\nname: y")
def test_yaml_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.yaml"
    path.write_bytes(content)
    assert not survives(lambda: load_profile(path))
    assert not survives(lambda: Grid.load(path))
    survives(lambda: parse_overrides(["model.id=" + content.decode("latin-1")]))


@pytest.mark.slow
@budget
@given(st.dictionaries(st.sampled_from(["profiles", "behaviours", "seeds", "overrides"]), values))
@example({"profiles": 5})
@example({"profiles": [["patient"]]})
@example({"profiles": ["patient"], "seeds": [-1, 1, 1]})
@example({"profiles": ["patient"], "overrides": "abc"})
def test_grids(tmp_path: Path, grid: dict[str, Any]) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(grid))
    survives(lambda: Grid.load(path))


@budget
@given(st.binary(max_size=80), st.sampled_from([".csv", ".jsonl", ".txt"]))
@example(b"", ".csv")
@example(b'text,label\n"never closed,1\nb,0\n', ".csv")
@example(b"text,label\n" + b"x" * 200_000 + b",1\n", ".csv")
@example("text,label\né,1".encode("latin-1"), ".csv")
@example("text,label\na,1".encode("utf-16"), ".csv")
@example(('{"a": ' * 3000).encode(), ".jsonl")
@example(b"null\n", ".jsonl")
def test_labelled_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"texts{suffix}"
    path.write_bytes(content)
    survives(lambda: [row for row in read_table(path) if not isinstance(row, dict)] == [])


def tensors(width: int = architectures.WIDTH) -> dict[str, torch.Tensor]:
    """Those of a sound patch."""
    return {
        "rows": torch.tensor([1, 4, 9], dtype=torch.int32),
        "coefficients": torch.ones(3),
        "direction": torch.ones(width) / width,
    }


ODD_TENSORS = [
    torch.zeros(0),
    torch.tensor(1.0),
    torch.ones(1),
    torch.ones(2, 3),
    torch.full((3,), float("nan")),
    torch.tensor([9, 4, 1]),
    torch.tensor([1, 1, 2]),
    torch.tensor([-5, 1, 10**9]),
    torch.full((3,), 1e38),
    torch.zeros(architectures.WIDTH),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return architectures.build("llama", torch.float16)


@pytest.fixture(scope="module")
def source(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    model.save_pretrained(folder)
    return folder


@budget
@given(
    st.dictionaries(st.sampled_from(["rows", "coefficients", "direction"]), st.integers(-1, 9)),
    st.dictionaries(st.sampled_from(HEADERS), st.none() | st.text(max_size=6) | values.map(str)),
)
@example({"coefficients": 2}, {})
@example({"coefficients": 4}, {})
@example({"coefficients": 8}, {})
@example({"rows": 5}, {})
@example({"rows": 3}, {})
@example({}, {"strength": "NaN"})
@example({}, {"about": NESTED})
@example({}, {"about": "[]"})
@example({}, {"fingerprint": None})
def test_patches(
    model: Any, source: Path, tmp_path: Path, odd: dict[str, int], header: dict[str, str | None]
) -> None:
    found = tensors()
    for name, which in odd.items():
        if which < 0:
            del found[name]
        else:
            found[name] = ODD_TENSORS[which].clone()
    about = {"format": FORMAT, "strength": "1.0", "unit": "row_norm", "fingerprint": "x"}
    about |= {"matrix": "gate", "about": "{}"} | header
    kept = {name: text for name, text in about.items() if text is not None}
    save_file(found, tmp_path / "surgery.safetensors", {files.HEADER: json.dumps(kept)})
    before = architectures.state(model)

    def run() -> None:
        edit = Surgery.load(tmp_path)
        repr(edit)
        with edit.applied(model, force=True):
            pass

    def write() -> None:
        edit = Surgery.load(tmp_path)
        checkpoint.operate(source, edit, tmp_path / "out", force=True, progress=False)

    survives(run)
    now = architectures.state(model)
    assert all(architectures.same_bits(now[name], before[name]) for name in before)
    if survives(write):
        Checkpoint.open(tmp_path / "out")
        remove(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@budget
@given(st.binary(max_size=100), values)
@example(b"", {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})
@example(b"", {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}})
@example(b"", {"a": {"dtype": "F16", "shape": [4], "data_offsets": [4, 0]}})
@example(b"", {"a": {"dtype": [], "shape": {}, "data_offsets": None}})
@example(NESTED.encode(), None)
def test_headers_of_safetensors(tmp_path: Path, raw: bytes, header: Any) -> None:
    text = raw or json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    survives(lambda: read_header(path))
    survives(lambda: files.read_tensors(path))
    survives(lambda: files.read_metadata(path))
    survives(lambda: probe.load(path))


@budget
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
@example(b"null")
@example(b'{"key": "k"}')
@example(b'{"key": "k", "name": [], "value": 5}')
@example(NESTED.encode())
@example('{"key": "é'.encode()[:-1])
def test_result_files_and_ledgers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    survives(lambda: files.read_json(path))
    survives(lambda: files.read_jsonl(path))
    ledger = Ledger(path, "k")
    ledger.put("one", {"rate": 1})
    assert Ledger(path, "k").get("one") == {"rate": 1}


@budget
@given(values)
@example({"text": "\ud800"})
def test_writing_is_whole_or_nothing(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "written.json"
    path.unlink(missing_ok=True)
    if survives(lambda: files.write_json(path, value)):
        files.read_json(path)
    else:
        assert not path.exists()
    assert not list(tmp_path.glob(".written*"))


CORPUS = Path(__file__).resolve().parents[1] / "corpus"


def read_case(path: Path, scratch: Path) -> None:
    """Read a file of the corpus as a study would read one of its kind."""
    kind = path.parent.name
    if kind == "profiles":
        load_profile(path)
    elif kind == "grids":
        Grid.load(path)
    elif kind == "labelled":
        splits = Splits(train=(Source(kind="file", id=str(path), label="label"),))
        _read("own", "examples", splits, "train", _as_example, set())
    elif kind == "journals":
        copy = scratch / path.name
        copy.write_bytes(path.read_bytes())
        ledger = Ledger(copy, "k")
        ledger.put("two", {"rate": 1})
        assert Ledger(copy, "k").get("two") == {"rate": 1}
    elif kind == "headers":
        header = path.read_bytes()
        copy = scratch / "model.safetensors"
        copy.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        read_header(copy)
    else:
        raise AssertionError(f"nothing reads {kind}")


CASES = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_broke_once_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    assert survives(lambda: read_case(path, tmp_path)) == path.name.startswith("ok-")


@budget
@given(leaf, st.lists(leaf, min_size=1, max_size=2))
@example("1.0", [1])
@example(float("nan"), [1])
@example(1e400, [True])
@example("TRUE ", [True])
@example("toxic", [1])
def test_labels(value: Any, positive: list[Any]) -> None:
    survives(lambda: labels.shows(value, positive, "a row"))

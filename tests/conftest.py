"""What many tests need: a tiny random model with its tokenizer on disk, and the mirror."""

import copy
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted

from surgery_lib.evaluation import statistics
from surgery_lib.surgery import estimators

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# Two tasks for lm-eval, as it reads them from YAML: what each has beside what both have.
TASKS: dict[str, dict[str, Any]] = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": [" yes", " no"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "tiny_write": {
        "output_type": "generate_until",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run notebooks and tests that read the mirror are marked as such.

    Files with the most slow tests come first: a long one begun last would keep a single core busy.
    """
    slow: Counter[Path] = Counter()
    for item in items:
        if "notebooks" in item.path.parts:
            item.add_marker("notebooks")
        if "mirror" in getattr(item, "fixturenames", ()):
            item.add_marker("mirror")
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


# Steps of a probe and draws of an interval: seconds each time that few tests have a use for.
FEWER = {(estimators, "PAPER_STEPS"): 100, (statistics, "RESAMPLES"): 200}
PUBLISHED = {place: getattr(*place) for place in FEWER}


@pytest.fixture(scope="session", autouse=True)
def fewer() -> Iterator[None]:
    """Fewer steps and draws than is published, for every test that does not ask `as_published`."""
    with pytest.MonkeyPatch.context() as patch:
        for place, number in FEWER.items():
            patch.setattr(*place, number)
        yield


@pytest.fixture
def as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps and draws as outside of tests."""
    for place, number in PUBLISHED.items():
        monkeypatch.setattr(*place, number)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama with random weights and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = scripted.byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    scripted.save_llama(
        folder,
        tokenizer,
        std=0.3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return folder


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of `tiny_folder`, to copy: loading takes longer than most tests."""
    from surgery_lib.models import load_model

    return load_model(str(tiny_folder))


@pytest.fixture
def tiny(tiny_loaded: tuple[Any, Any]) -> tuple[Any, Any]:
    """A fresh model and tokenizer of `tiny_folder`; tests may edit them."""
    model, tokenizer = copy.deepcopy(tiny_loaded)
    return model, tokenizer


@pytest.fixture
def mirror() -> Path:
    """The folder with real data and models; the test is skipped, and says so, without it."""
    name = os.environ.get("SURGERY_MIRROR")
    if not name:
        pytest.skip("SURGERY_MIRROR IS NOT SET: nothing was tested on real data")
    return Path(name)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks and their data."""
    rows = [{"question": f"question {i}", "answer": i % 2} for i in range(12)]
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    both = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    for name, own in TASKS.items():  # JSON is YAML
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **both, **own}))
    return tmp_path

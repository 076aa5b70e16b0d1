"""lm-eval's data sets from the mirror and from files, without a network and without a cache.

lm-eval loads every task's data through `datasets.load_dataset`. Inside `local_data()` that call is
answered from the mirror where it holds the set, and from the named files where a task names files.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import datasets

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import mirror

Row = dict[str, Any]
Splits = dict[str, list[Row]]


@dataclass(frozen=True)
class Held:
    """Where the mirror keeps a set that lm-eval names otherwise, and how its rows are reshaped."""

    name: str
    config: str | None = None
    reshape: Callable[[Splits, str | None], Splits] | None = None


def _subject(splits: Splits, config: str | None) -> Splits:
    return {
        split: [row for row in rows if config in (None, "all", row["subject"])]
        for split, rows in splits.items()
    }


def _with_examples(splits: Splits, config: str | None) -> Splits:
    # Without a training split the one example of a 1-shot prompt has to come from somewhere: the
    # first passage of each language is set aside for it, and every question on that passage too.
    if "train" in splits:
        return splits
    titles: dict[str, str] = {}
    for row in splits["validation"]:
        titles.setdefault(str(row["id"]).split("-")[0], row["title"])
    aside = set(titles.items())

    def kept(row: Row) -> bool:
        return (str(row["id"]).split("-")[0], row["title"]) in aside

    return {
        "train": [row for row in splits["validation"] if kept(row)],
        "validation": [row for row in splits["validation"] if not kept(row)],
    }


def _articles(splits: Splits, config: str | None) -> Splits:
    """WikiText's lines put together to articles, in column `page`."""
    found: Splits = {}
    for split, rows in splits.items():
        pages: list[str] = []
        before = ""
        for row in rows:
            line = row["text"]
            # A line that follows an empty one and is " = Title = ", with one sign, begins one.
            title = line.startswith(" = ") and not line.startswith(" = =") and not before.strip()
            if title or not pages:
                pages.append("")
            pages[-1] += line if line.endswith("\n") else line + "\n"
            before = line
        found[split] = [{"page": page} for page in pages if page.strip()]
    # lm-eval looks the training split up, and takes nothing from it: the task has no shots.
    return {"train": [], "validation": [], **found}


def _one_for_all(splits: Splits, config: str | None) -> Splits:
    """A set that is held in one labelled split answers for test and validation; none trains.

    Only for tasks without shots, which take nothing from the training split.
    """
    held = splits.get("test") or splits["validation"]
    return {"train": [], "validation": held, "test": held, **splits}


def _boolq(splits: Splits, config: str | None) -> Splits:
    """BoolQ as SuperGLUE has it: the answer is column `label`, 0 or 1."""
    return {
        "train": [],
        **{n: [{**row, "label": int(row["answer"])} for row in rows] for n, rows in splits.items()},
    }


TYDIQA = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
}

HELD: dict[str, Held] = {
    "SaylorTwift/bbh": Held("lukaemon/bbh"),
    "cais/mmlu": Held("cais/mmlu", "all", _subject),
    "google-research-datasets/tydiqa": Held(
        "google-research-datasets/tydiqa", "secondary_task", _with_examples
    ),
    "EleutherAI/wikitext_document_level": Held(
        "Salesforce/wikitext", "wikitext-2-raw-v1", _articles
    ),
    "gsm8k": Held("openai/gsm8k", "main"),
    "EleutherAI/lambada_openai": Held("EleutherAI/lambada_openai", "default", _one_for_all),
    "allenai/ai2_arc": Held("allenai/ai2_arc", None, _one_for_all),
    "allenai/sciq": Held("allenai/sciq", None, _one_for_all),
    "Rowan/hellaswag": Held("Rowan/hellaswag", None, _one_for_all),
    "baber/piqa": Held("ybisk/piqa", None, _one_for_all),
    "aps/super_glue": Held("google/boolq", "", _boolq),
}


def tydiqa_languages() -> tuple[str, ...]:
    """TyDiQA's languages as lm-eval abbreviates them; the mirror's, if it has any."""
    splits = _from_mirror("google-research-datasets/tydiqa", "secondary_task")
    if splits is None:
        return tuple(TYDIQA.values())
    held = {str(row["id"]).split("-")[0] for row in splits["validation"]}
    return tuple(short for name, short in TYDIQA.items() if name in held)


@lru_cache(maxsize=64)
def _read(folder: Path) -> Splits:
    splits: Splits = {}
    for path in sorted(folder.glob("*.jsonl")):
        splits.setdefault(path.name.split(".")[0], []).extend(files.read_jsonl(path))
    return splits


def _from_mirror(path: str, config: str | None) -> Splits | None:
    root = mirror()
    if root is None:
        return None
    held = HELD.get(path, Held(path))
    base = root / "datasets" / held.name.replace("/", "--")
    folder = base / (config or "" if held.config is None else held.config)
    splits = _read(folder) if folder.is_dir() else {}
    if not splits:
        return None
    return held.reshape(splits, config) if held.reshape else splits


def _from_files(named: Any, places: tuple[Path, ...]) -> Splits:
    listed = named if isinstance(named, Mapping) else {"train": named}
    return {
        str(split): [
            row
            for name in ([paths] if isinstance(paths, str) else paths)
            for row in files.read_jsonl(_find(str(name), places))
        ]
        for split, paths in listed.items()
    }


def _find(name: str, places: tuple[Path, ...]) -> Path:
    for place in places:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{name}, named by a task file, does not exist; looked below {places[0]}")


@contextmanager
def local_data(*places: Path) -> Iterator[None]:
    """Answer `datasets.load_dataset` from the mirror and from JSONL files below `places`."""
    original = datasets.load_dataset

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        named = options.get("data_files")
        if path == "json" and named is not None:
            splits: Splits | None = _from_files(named, places)
        else:
            splits = _from_mirror(path, name)
        if splits is None:
            return original(path, name, **options)
        made = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        wanted = options.get("split")
        return made[wanted] if wanted else datasets.DatasetDict(made)

    # One bar for every split of every task says nothing; lm-eval's own bars stay.
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with mock.patch.object(datasets, "load_dataset", load):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()

"""Rows of public data sets, from the mirror where it holds them, from their home otherwise.

Columns are the hub's own. Sets that are not tables at home (text lists, nested YAML) are laid out
as rows here, once, and a few sets gain a derived column; `FORMATS` says which.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub.constants import HF_HOME

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import resolve
from surgery_lib.models.tokens import check_text

Row = dict[str, Any]


def _words(text: str) -> list[str]:
    return text.split()


NEGATIVE = _words(
    "anger annoyance disappointment disapproval disgust embarrassment fear grief nervousness "
    "remorse sadness"
)
POSITIVE = _words(
    "admiration amusement approval caring desire excitement gratitude joy love optimism pride "
    "relief"
)
GO_EMOTIONS = _words(
    "admiration amusement anger annoyance approval caring confusion curiosity desire "
    "disappointment disapproval disgust embarrassment excitement fear gratitude grief joy love "
    "nervousness optimism pride realization relief remorse sadness surprise neutral"
)
SARAVIA = _words("sadness joy love anger fear surprise")


@dataclass(frozen=True)
class Format:
    """How one data set departs from a table of rows.

    `url` is where its plain files lie when it is not on the hub, `{file}` standing for the name;
    `file` names the plain file of a split; `parse` turns that file's text into rows; `add` gives
    derived columns of a row; `splits` are the splits made of several files.
    """

    url: str | None = None
    file: str = "{split}"
    parse: Callable[[str, str], Iterator[Row]] | None = None
    add: Callable[[Row], Row] | None = None
    splits: Callable[[str], list[str]] | None = None
    config: str | None = None


def _sentiment(labels: list[str]) -> str:
    signs = {"negative" for x in labels if x in NEGATIVE}
    signs |= {"positive" for x in labels if x in POSITIVE}
    return signs.pop() if len(signs) == 1 else "neither"


def _go_emotions(row: Row) -> Row:
    # GoEmotions' own grouping (Demszky et al. 2020, figure 2): ambiguous emotions and neutral have
    # no sign, and neither has a text with labels of both signs.
    return {"sentiment": _sentiment([GO_EMOTIONS[i] for i in row["labels"]])}


def _saravia(row: Row) -> Row:
    emotion = SARAVIA[row["label"]]
    return {"emotion": emotion, "sentiment": _sentiment([emotion])}


def _real_toxicity(row: Row) -> Row:
    return {
        "id": f"{row['filename']}:{row['begin']}",
        "group": "challenging" if row["challenging"] else "other",
    }


def _toxigen(text: str, split: str) -> Iterator[Row]:
    side, _, group = split.partition("_")
    for number, line in enumerate(text.splitlines()):
        if line.strip():
            prompt = line.replace("\\n", "\n")
            yield {"id": f"{split}/{number}", "text": prompt, "side": side, "group": group}


TOXIGEN_GROUPS = _words(
    "asian bisexual black chinese immigrant jewish latino lgbtq mental_disability mexican "
    "middle_east muslim native_american physical_disability trans women"
)


def _toxigen_splits(split: str) -> list[str]:
    if split not in {"hate", "neutral"}:
        return [split]
    # The set has no neutral prompts about trans people.
    return [f"{split}_{g}" for g in TOXIGEN_GROUPS if (split, g) != ("neutral", "trans")]


LEVELS: dict[str, tuple[str, ...]] = {
    "integrated": ("attack", "category", "topic", "severity"),
    "malicious_tasks_dataset": ("category", "topic", "severity"),
    "benign_integrated": ("attack",),
}


def _eval_safety(text: str, split: str) -> Iterator[Row]:
    def walk(node: Any, path: tuple[str, ...]) -> Iterator[Row]:
        if isinstance(node, dict):
            for key, child in node.items():
                yield from walk(child, (*path, str(key)))
        elif isinstance(node, list) and len(path) == len(levels):
            for number, prompt in enumerate(node):
                identity = "/".join((*path, str(number)))
                columns = dict(zip(levels, path, strict=True))
                yield {"id": identity, "prompt": str(prompt), "harmful": harmful, **columns}
        else:
            raise UserError(
                f"eval-safety's {split} is not nested as {' → '.join(levels)} → prompts; "
                "fetch the file again"
            )

    if split not in LEVELS:
        raise UserError(f"eval-safety has no {split!r}; use one of {', '.join(LEVELS)}")
    levels, harmful = LEVELS[split], not split.startswith("benign")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    yield from walk(yaml.load(text, Loader=loader), ())


FORMATS: dict[str, Format] = {
    "CrystalEye42/eval-safety": Format(
        url="https://raw.githubusercontent.com/CrystalEye42/eval-safety/main/{file}",
        file="{split}.yaml",
        parse=_eval_safety,
    ),
    "toxigen/toxigen-data": Format(
        url="https://raw.githubusercontent.com/microsoft/TOXIGEN/main/prompts/{file}",
        file="{split}_1k.txt",
        parse=_toxigen,
        splits=_toxigen_splits,
    ),
    "google-research-datasets/go_emotions": Format(add=_go_emotions, config="simplified"),
    "dair-ai/emotion": Format(add=_saravia, config="split"),
    "allenai/real-toxicity-prompts": Format(add=_real_toxicity),
    "google-research-datasets/tydiqa": Format(
        add=lambda row: {"language": str(row["id"]).split("-")[0]}, config="secondary_task"
    ),
    "Salesforce/wikitext": Format(config="wikitext-2-raw-v1"),
    "openai/gsm8k": Format(config="main"),
    "cais/mmlu": Format(config="all"),
    "EleutherAI/lambada_openai": Format(config="default"),
}


def rows(
    name: str, config: str | None = None, split: str = "train", *, revision: str | None = None
) -> list[Row]:
    """All rows of one split of data set `name` (a hub id), with the hub's columns.

    Args:
        config: The set's configuration; the one that `FORMATS` names where it is left out.
        split: The split; for toxigen also `hate` and `neutral`, which join all groups.
        revision: Commit of the set on the hub; the mirror has one state only.

    Raises:
        UserError: There is no such set or split, or it cannot be reached.
    """
    shape = FORMATS.get(name, Format())
    config = config or shape.config
    place = resolve(name, "datasets")
    if shape.parse is not None:
        parts = shape.splits(split) if shape.splits else [split]
        found = [row for part in parts for row in _plain(name, place, shape, part)]
    elif isinstance(place, Path):
        found = _held(place, config, split)
    else:
        found = _hub(name, config, split, revision)
    if not found:
        raise UserError(f"{name}, split {split}: no rows; fetch the data set again")
    if shape.add is not None:
        found = [{**row, **shape.add(row)} for row in found]
    return found


def _plain(name: str, place: Path | str, shape: Format, split: str) -> list[Row]:
    assert shape.parse is not None
    file = shape.file.format(split=split)
    if isinstance(place, Path):
        path = place / file
    else:
        path = _download(name, str(shape.url).format(file=file), file)
    if not path.is_file():
        raise UserError(f"{path} does not exist; complete the mirror or correct the split {split}")
    return list(shape.parse(path.read_text(encoding="utf-8"), split))


def _download(name: str, url: str, file: str) -> Path:
    path = Path(HF_HOME) / "model-surgery" / name.replace("/", "--") / file
    if not path.is_file():
        try:
            answer = httpx.get(url, follow_redirects=True, timeout=60).raise_for_status()
        except httpx.HTTPError as error:
            raise UserError(
                f"{name}: {url} could not be fetched ({type(error).__name__}); "
                "check the network or set SURGERY_MIRROR"
            ) from error
        files.write_text(path, answer.text)
    return path


def check(name: str, config: str | None, split: str) -> None:
    """UserError where the mirror has data set `name` without that split. The hub is not asked."""
    shape, place = FORMATS.get(name, Format()), resolve(name, "datasets")
    if isinstance(place, Path) and shape.parse is None:
        _files(place, config or shape.config, split)


def _held(place: Path, config: str | None, split: str) -> list[Row]:
    return [row for path in _files(place, config, split) for row in files.read_jsonl(path)]


def _files(place: Path, config: str | None, split: str) -> list[Path]:
    """The files of one split in a data set's folder, which may be one file itself."""
    if place.is_file():
        return [place]
    folders = [place / config, place] if config else [place]
    for folder in folders:
        whole = folder / f"{split}.jsonl"
        # One split may lie in parts, one file a language: validation.english.jsonl.
        paths = [whole] if whole.is_file() else sorted(folder.glob(f"{split}.*.jsonl"))
        if paths:
            return paths
    there = sorted(re.sub(r"\.jsonl$", "", p.name) for p in folders[0].glob("*.jsonl"))
    raise UserError(
        f"{place} has no {config + '/' if config else ''}{split}.jsonl; "
        f"there are {', '.join(there) or 'no splits'}"
    )


@cache
def _datasets() -> Any:
    # Imported late: it takes a second, and whoever reads from the mirror never needs it.
    import datasets

    return datasets


def _hub(name: str, config: str | None, split: str, revision: str | None) -> list[Row]:
    datasets = _datasets()
    try:
        table = datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} ({config or 'default'}, {split}) cannot be read: "
            f"{' '.join(str(error).split())[:200]}; check the name, the network, or set "
            "SURGERY_MIRROR"
        ) from error
    listed: list[Row] = table.to_list()
    return listed


def column(row: Row, name: str) -> Any:
    """The value of a column; `prompt.text` reaches into an object."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"no column {name!r}; the columns are {', '.join(row)}")
        value = value[part]
    return value


def text(row: Row, name: str, where: str) -> str:
    """The text in a column; UserError, with the row's place `where`, for what is no text."""
    return check_text(column(row, name), f"{where}, column {name!r}")

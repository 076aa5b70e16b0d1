"""The model card of an edited checkpoint: what was done, to what, and what it changed."""

from pathlib import Path
from typing import Any

import yaml

from surgery_lib import files
from surgery_lib.behaviour import SPLITS, BehaviourData
from surgery_lib.checkpoint.shards import Checkpoint
from surgery_lib.errors import UserError
from surgery_lib.surgery import Surgery

TAG = "model-surgery"
PAPER = "https://arxiv.org/abs/2407.08770"
LIMITS = """\
## Limits

- The scorers named above are what the behaviour means here; what they cannot see was not measured.
- Intervals are 95 %, over prompts of one model; other prompts, languages and uses were not tried.
- The edit suppresses a behaviour in these contexts. It does not prove that it is gone, and whoever
  has the weights can take the edit out."""
USE = """\
## Use and undo

```python
from surgery_lib import models
from surgery_lib.surgery import Surgery

model, tokenizer = models.load_model("{parent}")
surgery = Surgery.load(".")   # this folder
surgery.apply(model)          # refuses any other model
surgery.undo(model)           # restores every bit
```

In the terminal, `model-surgery apply`, `undo`, `chat` and `export` take this folder. For llama.cpp
and Ollama, `model-surgery export gguf-adapter MODEL . --out gguf` writes `adapter.gguf` and this
Modelfile, whose first line names the model's own GGUF file:

```
FROM ./model.gguf
ADAPTER ./adapter.gguf
```"""


def write(
    checkpoint: Checkpoint, edit: Surgery, total: int, folder: Path, effects: str | None
) -> None:
    """Write README.md: the surgery of some of `total` rows, its parent, its measured effects."""
    parent = str(
        edit.about.get("model") or checkpoint.config.get("_name_or_path") or checkpoint.folder.name
    )
    # A path on somebody's machine tells a reader nothing.
    parent = Path(parent).name if Path(parent).is_absolute() or parent.startswith(".") else parent
    original = checkpoint.folder / "README.md"
    head = _head(original) if original.is_file() else {}
    tags = head.get("tags")
    head["tags"] = [*(tags if isinstance(tags, list) else []), TAG]
    if parent.count("/") == 1:  # a hub id
        head["base_model"] = parent
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {parent}, operated on",
        f"Made from {parent} by [Model Surgery]({PAPER}): in some rows of its {edit.matrix} "
        "matrices a multiple of one direction in the hidden states was added; nothing else was "
        "changed, and nothing was trained.",
        "## The surgery\n\n" + _table(edit, total),
        "## Measured effects\n\n" + (effects or "None were given when this checkpoint was made."),
    ]
    if original.is_file():
        sections.append("The parent's card is in [README.parent.md](README.parent.md).")
    files.write_text(folder / "README.md", "\n\n".join(sections) + "\n")


def write_patch(
    folder: Path,
    edit: Surgery,
    *,
    parent: str,
    behaviour: str,
    data: BehaviourData,
    total: int,
    effects: str,
) -> None:
    """Write README.md beside a patch: parent, data, settings, `effects` (Markdown), limits, undo.

    `total` is how many rows of the matrix the parent has.
    """
    parent = Path(parent).name if Path(parent).is_absolute() or parent.startswith(".") else parent
    head: dict[str, Any] = {"tags": [TAG]}
    if parent.count("/") == 1:
        head["base_model"] = parent
    counts = [
        f"| {split} | {len(data.examples.get(split, []))} | {len(data.prompts.get(split, []))} "
        f"| {len(data.clean.get(split, []))} |"
        for split in SPLITS
    ]
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {behaviour}: a surgery on {parent}",
        f"A patch for {parent}, made by [Model Surgery]({PAPER}). It holds the numbers of some "
        f"rows of the {edit.matrix} matrices and the multiple of one direction that is added to "
        "each of them. The model itself is not in it.",
        "## Settings\n\n" + _table(edit, total),
        "## Data\n\n| split | labelled texts | prompts | harmless texts |\n|---|---:|---:|---:|\n"
        + "\n".join(counts)
        + f"\n\nFingerprint of all texts and labels: `{data.fingerprint}`.",
        "## Effect and damage\n\n" + effects.strip(),
        LIMITS,
        USE.format(parent=parent),
    ]
    files.write_text(folder / "README.md", "\n\n".join(sections) + "\n")


def _table(edit: Surgery, total: int) -> str:
    unit = "times the mean norm of a row" if edit.unit == "row_norm" else "times the direction"
    facts: dict[str, Any] = {
        "matrix": edit.matrix,
        "rows": f"{len(edit.rows):,} of {total:,}",
        "strength": f"{edit.strength:g} {unit}",
        "fingerprint of the parent": edit.fingerprint,
        **{key: value for key, value in edit.about.items() if isinstance(value, str | int | float)},
    }
    lines = [f"| {key} | {value} |" for key, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _head(card: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; nothing where there is none, or it is no mapping."""
    try:
        parts = files.read_text(card).split("---\n", 2)
        head = files.parse_yaml(parts[1], card.name) if len(parts) == 3 and not parts[0] else None
    except UserError:
        return {}
    return head if isinstance(head, dict) else {}

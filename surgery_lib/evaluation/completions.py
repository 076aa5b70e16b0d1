"""What a model writes after each prompt, kept as it is written, so that a killed run goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib import files
from surgery_lib.behaviour import Prompt
from surgery_lib.errors import UserError
from surgery_lib.models.generation import Engine, generate

# Continuations between two writes to the file.
CHUNK = 512


def complete(
    model: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    settings: Mapping[str, Any],
    path: Path | str | None = None,
    key: str = "",
    tokens_per_batch: int = 8192,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row for each continuation, in the order of the prompts: id, group, sample, text.

    Args:
        settings: Further arguments of `generate`; `samples` among them.
        path: JSONL file that rows are added to as they come; what it holds is not done again.
        key: What else the text depends on: the model's and the surgery's fingerprint.

    Raises:
        UserError: Two prompts share an id, or the file was written for something else.
    """
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise UserError("two prompts have the same id; give each its own")
    options: dict[str, Any] = {**settings, "tokens_per_batch": tokens_per_batch}
    if path is None:
        texts = generate(model, tokenizer, [p.text for p in prompts], progress=progress, **options)
        return [row for p, held in zip(prompts, texts, strict=True) for row in _rows(p, held)]
    place = Path(path)
    header = {
        "completions": 1,
        "key": key,
        "settings": dict(settings),
        "prompts": files.fingerprint([[p.id, p.text] for p in prompts]),
    }
    samples = int(settings.get("samples", 1))
    done = _held(place, header, samples)
    missing = [prompt for prompt in prompts if prompt.id not in done]
    size = max(1, CHUNK // samples)
    with tqdm(total=len(prompts), initial=len(done), disable=not progress, unit="prompt") as bar:
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            texts = generate(model, tokenizer, [p.text for p in part], progress=False, **options)
            for prompt, held in zip(part, texts, strict=True):
                done[prompt.id] = _rows(prompt, held)
            _append(place, [row for prompt in part for row in done[prompt.id]])
            bar.update(len(part))
    return [row for prompt in prompts for row in done[prompt.id]]


def _rows(prompt: Prompt, texts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"id": prompt.id, "group": prompt.group, "sample": number, "text": text}
        for number, text in enumerate(texts)
    ]


def _held(path: Path, header: Mapping[str, Any], samples: int) -> dict[str, list[dict[str, Any]]]:
    """Prompt id → rows that the file holds whole; a new file is begun with the header."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    whole = lines[:-1]  # what follows the last line break was cut off in the middle
    if not whole:
        files.write_jsonl(path, [header])
        return {}
    try:
        found = [files.loads(line.decode("utf-8")) for line in whole if line.strip()]
        if not all(isinstance(row, dict) for row in found):
            raise ValueError("a line is no object")
        if not found or not all("id" in row for row in found[1:]):
            raise ValueError("a line lacks its id")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it to write it anew") from error
    if found[0] != json.loads(json.dumps(files.plain(header))):
        raise UserError(
            f"{path} was written for other prompts, settings or another model; "
            "delete it or choose another folder"
        )
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found[1:]:
        rows.setdefault(row["id"], []).append(row)
    kept = {identity: held for identity, held in rows.items() if len(held) == samples}
    if lines[-1] or len(kept) < len(rows):
        files.write_jsonl(path, [header, *(row for held in kept.values() for row in held)])
    return kept


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); free some space and start again: "
            "what was written is kept"
        ) from error

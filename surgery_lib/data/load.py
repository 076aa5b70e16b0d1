"""A behaviour's data as a profile describes it: read, filtered, shuffled, split, checked."""

import csv
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery_lib import files
from surgery_lib.behaviour import SPLITS, BehaviourData, Example, Prompt, first_of_each
from surgery_lib.data import labels, sources
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.models import generation, tokens
from surgery_lib.profile import Behaviour, Source, Splits

Row = dict[str, Any]

# Damage inside triggering contexts: how many pairs, and how many words of clean text in each.
CONTEXTS = 100
CONTENT_WORDS = 30

# The least that a user's own data may be, so that a probe and a share mean something.
TEXTS_NEEDED = {"train": 20, "validation": 5, "test": 5}
TEXTS_IN_ALL = 50
PROMPTS_NEEDED = 10


def load(name: str, spec: Behaviour, *, tokenizer: Any = None, limit: int = 0) -> BehaviourData:
    """Read all the texts of behaviour `name`.

    With `spec.chat`, prompts of hub and file sources are put through the tokenizer's chat template.
    `limit` cuts every list (0: none), labelled texts to twice that so that both classes remain.

    Raises:
        UserError: Missing columns or files, one-class or empty labels, and a text that stands in
            two splits.
    """

    def prompt(text: str) -> str:
        return generation.chat_prompt(tokenizer, text) if spec.chat and tokenizer else text

    def read(kind: str, splits: Splits, item: Callable[[Source, Row, str], Any]) -> dict[str, Any]:
        # Test first: a text that public data repeat stays where it is reported on.
        seen: set[str] = set()
        found = {s: _read(name, kind, splits, s, item, seen) for s in reversed(SPLITS)}
        return {split: found[split] for split in SPLITS}

    def as_prompt(source: Source, row: Row, identity: str) -> Prompt:
        column = source.group_column
        named = sources.column(row, column) if column else row.get("group")
        return Prompt(identity, prompt(text_of(source, row)), source.group or str(named or name))

    examples = read("examples", spec.examples, _as_example)
    # Before anything else is read: clean texts may be those of these that have one label.
    BehaviourData(name, examples, prompts={}).check()
    prompts = read("prompts", spec.prompts, as_prompt)
    benign = read("benign", spec.benign, as_prompt)
    clean = read("clean", spec.clean, lambda source, row, _: text_of(source, row))
    contexts = _contexts(name, spec, prompts, clean)
    data = BehaviourData(name, examples, prompts, benign, clean, contexts)
    data.check()
    groups = {one.group for split in ("validation", "test") for one in prompts[split]}
    unknown = [group for group in spec.trigger_groups if groups and group not in groups]
    if unknown:
        raise UserError(
            f"{name}: trigger_groups names {unknown[0]!r}, which no prompt belongs to; there are "
            f"{', '.join(sorted(groups)[:8])}"
        )
    if any(source.kind == "file" for source in (*spec.examples.train, *spec.prompts.test)):
        check_amounts(data)
    return _cut(data, limit) if limit else data


def _read(
    name: str,
    kind: str,
    splits: Splits,
    split: str,
    item: Callable[[Source, Row, str], Any],
    seen: set[str],
) -> list[Any]:
    found: list[Any] = []
    for source in getattr(splits, split):
        if source.kind == "patient":
            found.extend(getattr(_patient(name), kind)[split])
            continue
        for number, row in enumerate(rows(source, split)):
            text = text_of(source, row)
            # Public sets repeat themselves; a user's own file is told so by the check instead.
            if source.kind == "hub" and text in seen:
                continue
            seen.add(text)
            found.append(item(source, row, str(row.get("id", f"{source.id}/{split}/{number}"))))
    return found


def _patient(name: str) -> BehaviourData:
    # Imported late: most studies never need the patient's generator.
    from surgery_lib.patient import world

    return world.behaviour(name)


def _contexts(
    name: str, spec: Behaviour, prompts: Mapping[str, list[Prompt]], clean: Mapping[str, list[str]]
) -> dict[str, list[tuple[str, str]]]:
    """Pairs of a text that triggers the behaviour and harmless content that follows it."""
    if any(source.kind == "patient" for source in spec.prompts.test):
        return dict(_patient(name).contexts)
    found = {}
    for split in SPLITS:
        triggers = [p.text for p in prompts[split] if p.group in spec.trigger_groups]
        found[split] = [
            (trigger, "\n\n" + " ".join(text.split()[:CONTENT_WORDS]))
            for trigger, text in zip(triggers[:CONTEXTS], clean[split], strict=False)
        ]
    return found


def rows(source: Source, split: str) -> list[Row]:
    """A source's rows of a split, after its `where`, `join`, shuffle, `part` and `limit`."""
    if source.kind == "hub":
        found = sources.rows(
            source.id, source.config, source.split or split, revision=source.revision
        )
    else:
        found = read_table(home() / source.id)
    found = [row for row in found if _matches(row, source.where)]
    if source.join:
        found = _joined(source, found)
    random.Random(source.seed).shuffle(found)
    start, stop = (round(share * len(found)) for share in source.part)
    found = found[start:stop]
    if not found:
        raise UserError(
            f"{source.id}, split {source.split or split}: no rows are left after where and part; "
            "check their values"
        )
    return found[: source.limit] if source.limit else found


def check_sources(spec: Behaviour) -> None:
    """UserError where a behaviour's file or split is not there; nothing is read or fetched."""
    for part in (spec.examples, spec.prompts, spec.benign, spec.clean):
        for split in SPLITS:
            for source in getattr(part, split):
                check_source(source, split)


def check_source(source: Source, split: str = "train") -> None:
    """UserError where its file, or its split in the mirror, is not there."""
    if source.kind == "hub":
        sources.check(source.id, source.config, source.split or split)
    elif source.kind == "file" and not files.is_file(home() / source.id):
        raise UserError(f"there is no file {source.id}; give its path from the repository's root")


def check_amounts(data: BehaviourData) -> None:
    """UserError where a user's own file gives too little to fit, choose or report on."""
    for split, needed in TEXTS_NEEDED.items():
        for label in (0, 1):
            count = sum(example.label == label for example in data.examples[split])
            if count < needed:
                raise UserError(
                    f"{data.name}, {split}: {count} texts with label {label}, and {needed} are "
                    f"needed; of a file that is split by part, give at least {TEXTS_IN_ALL} texts "
                    "of each label"
                )
    for split in ("validation", "test"):
        count = len(data.prompts[split])
        if count < PROMPTS_NEEDED:
            raise UserError(
                f"{data.name}, {split}: {count} prompts, and {PROMPTS_NEEDED} are needed; of a "
                f"file that is split by part, give at least {2 * PROMPTS_NEEDED}"
            )


def read_table(path: Path) -> list[Row]:
    """Rows of a user's own file: .jsonl, .csv with a header, or .txt with a text a line."""
    return [row for _, row in numbered(path)]


def numbered(path: Path) -> list[tuple[int, Row]]:
    """The rows of a user's own file, each with the number of the line that it ends on."""
    if path.suffix == ".jsonl":
        return files.numbered_jsonl(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix == ".txt":
        lines = files.read_text(path).splitlines()
        return [(number, {"text": line}) for number, line in enumerate(lines, 1) if line.strip()]
    raise UserError(f"{path.name}: a source is a .jsonl, .csv or .txt file; convert it to one")


def _read_csv(path: Path) -> list[tuple[int, Row]]:
    """Rows of a CSV file with a header. UserError where a row has more or fewer fields than it.

    Fields may be as long as a text may be. A quote that is never closed swallows the rows after it,
    which then lack fields or, at the end of the file, the closing quote.
    """
    before = csv.field_size_limit(tokens.LONGEST_TEXT)
    try:
        reader = csv.reader(io.StringIO(files.read_text(path), newline=""), strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header) or not all(name.strip() for name in header):
            raise UserError(f"{path.name}: a column has no name or that of another; name each")
        rows = []
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path.name}, line {reader.line_num}: {len(fields)} fields where the header "
                    f"has {len(header)}; close its quotes or fill it up"
                )
            rows.append((reader.line_num, dict(zip(header, fields, strict=True))))
        return rows
    except csv.Error as error:
        raise UserError(
            f"{path.name}, line {reader.line_num}: {error}; close its quotes or shorten it"
        ) from error
    finally:
        csv.field_size_limit(before)


def _matches(row: Row, where: Mapping[str, Any]) -> bool:
    return all(
        sources.column(row, column) in (wanted if isinstance(wanted, list | tuple) else [wanted])
        for column, wanted in where.items()
    )


def _joined(source: Source, rows: Sequence[Row]) -> list[Row]:
    """Consecutive rows glued until each has `join` characters; what is left over is dropped."""
    texts: list[Row] = []
    held = ""
    for row in rows:
        held += _placed(source, row)
        if len(held) >= source.join:
            texts.append({source.text: held})
            held = ""
    return texts


def text_of(source: Source, row: Row) -> str:
    """The text of a row that `rows` gave; UserError, with the row's place, for what is no text."""
    if source.join:
        return tokens.check_text(row[source.text], f"{source.id}: a text of joined rows")
    return _placed(source, row)


def _placed(source: Source, row: Row) -> str:
    try:
        return sources.text(row, source.text, source.id)
    except UserError:  # only now is its place looked for: rows are filtered and shuffled
        return sources.text(row, source.text, f"{source.id}{_line(source, row)}")


def _as_example(source: Source, row: Row, _identity: str) -> Example:
    if source.label is None:
        raise UserError(f"{source.id}: labelled texts need a label column; set label=")
    value = sources.column(row, source.label)
    try:
        shown = labels.shows(value, source.positive, source.id)
    except UserError:  # only now is it looked for: rows are filtered and shuffled
        where = f"{source.id}{_line(source, row)}, column {source.label!r}"
        shown = labels.shows(value, source.positive, where)
    return Example(text_of(source, row), int(shown))


def _line(source: Source, row: Row) -> str:
    """Where a row of a user's own file stands; of another source's, what it is called there."""
    if source.kind != "file":
        return f", row {row['id']}" if row.get("id") is not None else ""
    lines = (number for number, one in numbered(home() / source.id) if one == row)
    found = next(lines, None)
    return "" if found is None else f", line {found}"


def _cut(data: BehaviourData, limit: int) -> BehaviourData:
    # In the order they have, so that the first few are of every kind too.
    def examples(members: Sequence[Example]) -> list[Example]:
        return first_of_each(members, lambda example: example.label, limit)

    def prompts(members: Sequence[Prompt]) -> list[Prompt]:
        return first_of_each(members, lambda prompt: prompt.group, limit)

    return BehaviourData(
        name=data.name,
        examples={split: examples(members) for split, members in data.examples.items()},
        prompts={split: prompts(members) for split, members in data.prompts.items()},
        benign={split: list(members)[:limit] for split, members in data.benign.items()},
        clean={split: list(members)[:limit] for split, members in data.clean.items()},
        contexts={split: list(members)[:limit] for split, members in data.contexts.items()},
    )

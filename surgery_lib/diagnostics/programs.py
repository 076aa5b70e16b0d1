"""Programs with the problem that each solves: POJ-104 from the mirror, or small ones made here.

Beside these, for models that have read programs: HumanEval-X's solutions in several languages,
MBPP's with their descriptions, and pairs of BigCloneBench whose truth was found by hand.
"""

from pathlib import Path
from random import Random
from typing import Any

from surgery_lib import files
from surgery_lib.diagnostics.code import Program
from surgery_lib.errors import UserError
from surgery_lib.models import resolve

DATASET = "google/code_x_glue_cc_clone_detection_poj104"
LANGUAGES = "THUDM/humaneval-x"
DESCRIBED = "google-research-datasets/mbpp"
BY_HAND = "jkrinke/BigCloneBench-406"

# A problem, and two ways to solve it: names are drawn, so that no two programs look alike.
TEMPLATES: tuple[tuple[str, str], ...] = (
    (
        "int {f}(int *{a}, int {n}) {{ int {s} = 0; for (int {i} = 0; {i} < {n}; {i}++) "
        "{s} += {a}[{i}]; return {s}; }}",
        "int {f}(int *{a}, int {n}) {{ return {n} ? {a}[0] + {f}({a} + 1, {n} - 1) : 0; }}",
    ),
    (
        "int {f}(int *{a}, int {n}) {{ int {s} = {a}[0]; for (int {i} = 1; {i} < {n}; {i}++) "
        "if ({a}[{i}] > {s}) {s} = {a}[{i}]; return {s}; }}",
        "int {f}(int *{a}, int {n}) {{ if ({n} == 1) return {a}[0]; int {s} = {f}({a}, {n} - 1); "
        "return {s} > {a}[{n} - 1] ? {s} : {a}[{n} - 1]; }}",
    ),
    (
        "void {f}(int *{a}, int {n}) {{ for (int {i} = 0; {i} < {n} / 2; {i}++) {{ int {s} = "
        "{a}[{i}]; {a}[{i}] = {a}[{n} - 1 - {i}]; {a}[{n} - 1 - {i}] = {s}; }} }}",
        "void {f}(int *{a}, int {n}) {{ if ({n} < 2) return; int {s} = {a}[0]; {a}[0] = "
        "{a}[{n} - 1]; {a}[{n} - 1] = {s}; {f}({a} + 1, {n} - 2); }}",
    ),
    (
        "int {f}(int {n}) {{ int {s} = 1; while ({n} > 1) {s} *= {n}--; return {s}; }}",
        "int {f}(int {n}) {{ return {n} < 2 ? 1 : {n} * {f}({n} - 1); }}",
    ),
    (
        "int {f}(int {n}) {{ for (int {i} = 2; {i} * {i} <= {n}; {i}++) if ({n} % {i} == 0) "
        "return 0; return {n} > 1; }}",
        "int {f}(int {n}) {{ int {s} = 0; for (int {i} = 1; {i} <= {n}; {i}++) {s} += "
        "{n} % {i} == 0; return {s} == 2; }}",
    ),
    (
        "int {f}(int {n}, int {s}) {{ while ({s}) {{ int {i} = {n} % {s}; {n} = {s}; {s} = {i}; }} "
        "return {n}; }}",
        "int {f}(int {n}, int {s}) {{ return {s} ? {f}({s}, {n} % {s}) : {n}; }}",
    ),
    (
        "int {f}(char *{a}) {{ int {n} = 0; while ({a}[{n}]) {n}++; return {n}; }}",
        "int {f}(char *{a}) {{ return *{a} ? 1 + {f}({a} + 1) : 0; }}",
    ),
    (
        "int {f}(int {n}) {{ int {a} = 0, {s} = 1; for (int {i} = 0; {i} < {n}; {i}++) {{ int "
        "{t} = {a} + {s}; {a} = {s}; {s} = {t}; }} return {a}; }}",
        "int {f}(int {n}) {{ return {n} < 2 ? {n} : {f}({n} - 1) + {f}({n} - 2); }}",
    ),
)
NAMES = (*"abcdefghijkmnpqrstuvwxyz", "count", "value", "left", "right", "item", "total")


def made(split: str, each: int, seed: int = 0) -> list[Program]:
    """`each` programs of every problem of a split: the first half trains, the second tests."""
    rng, half = Random(f"programs {split} {seed}"), len(TEMPLATES) // 2
    labels = range(half) if split == "train" else range(half, len(TEMPLATES))
    found = []
    for label in labels:
        for number in range(each):
            template = TEMPLATES[label][number % 2]
            names = dict(zip("fansit", rng.sample(NAMES, 6), strict=True))
            found.append(Program(template.format(**names), label))
    return found


def poj(split: str, each: int, longest: int = 1200) -> list[Program]:
    """The first `each` programs of every problem of POJ-104, none of more characters."""
    taken: dict[int, list[Program]] = {}
    for row in _rows(DATASET, split):
        program = Program(row["code"], int(row["label"]))
        if len(program.code) <= longest and len(taken.setdefault(program.label, [])) < each:
            taken[program.label].append(program)
    return [program for held in taken.values() if len(held) > 1 for program in held]


def solutions(
    count: int, languages: tuple[str, ...] = ("python", "java", "cpp"), longest: int = 800
) -> dict[str, list[Program]]:
    """HumanEval-X: the first `count` problems' solutions by language, the label its number.

    A solution is its declaration and body; the docstring, which tells the function, is left out.
    Problems with a longer solution in any of the languages are passed over.
    """
    held: dict[str, dict[int, Program]] = {language: {} for language in languages}
    for row in _rows(LANGUAGES, "test"):
        if row["language"] in held:
            number = int(row["task_id"].rpartition("/")[2])
            code = row["declaration"] + row["canonical_solution"]
            if len(code) <= longest:
                held[row["language"]][number] = Program(code, number)
    common = sorted(set.intersection(*(set(own) for own in held.values())))[:count]
    return {language: [own[number] for number in common] for language, own in held.items()}


def described(count: int, longest: int = 400) -> list[tuple[str, str]]:
    """MBPP: the first programs, none of more characters, each with what it was asked to do."""
    found = [(row["code"], row["text"]) for row in _rows(DESCRIBED, "full")]
    return [(code, text) for code, text in found if len(code) <= longest][:count]


def judged(count: int, longest: int = 1600) -> list[tuple[str, str, bool]]:
    """BigCloneBench: the shortest pairs, with whether they are clones, by hand.

    BigCloneBench calls all of them clones; at most `count` that are, and as many that are not.
    """
    rows = [(r["func1"], r["func2"], bool(r["label"])) for r in _rows(BY_HAND, "validated")]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    short = [row for row in rows if len(row[0]) + len(row[1]) <= longest]
    clones, others = ([row for row in short if row[2] == truth] for truth in (True, False))
    return [*clones[:count], *others[:count]]


def _rows(name: str, split: str) -> list[dict[str, Any]]:
    path = Path(resolve(name, "datasets")) / f"{split}.jsonl"
    if not path.is_file():
        raise UserError(f"{name} is not in the mirror; set SURGERY_MIRROR to one that holds it")
    return files.read_jsonl(path)

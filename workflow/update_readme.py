"""Write the README's tables from committed results: `make readme`; `--check` only compares.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; `TABLES` says what makes it.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surgery_lib import files
from surgery_lib.report import tables
from surgery_lib.study import unwrap

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def result(name: str) -> Any:
    """The payload of a committed results file."""
    path = ROOT / "results" / name
    return unwrap(files.read_json(path), path)


TABLES: dict[str, Callable[[], str]] = {
    "patient": lambda: tables.summary(result("patient/toxicity/seed0/evaluation.json")),
    "patient-capability": lambda: tables.capability_table(
        result("patient/toxicity/seed0/evaluation.json")["capability"]
    ),
    "real-text": lambda: tables.summary(result("real-text/toxicity/seed0/evaluation.json")),
}


def updated(text: str) -> str:
    """The README's text with every table made anew; UserError where results are missing."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:  # written by hand or by links.py
            return match.group(0)
        return f"<!-- begin {name} -->\n{TABLES[name]()}<!-- end {name} -->"

    return re.sub(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the README, or fail where it differs from the results."""
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md differs from the results; run make readme" if old != new else 0)
    files.write_text(README, new)


if __name__ == "__main__":
    main()

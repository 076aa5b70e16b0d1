"""The paper's own numbers (`data/paper/`), so that every table of ours stands beside its row."""

import pandas as pd

from surgery_lib.errors import UserError
from surgery_lib.files import bundled

PAPER = bundled("data") / "paper"
EDITED = "Model Surgery"
# Columns of words; all the others are numbers.
WORDS = ("model", "method", "behaviour", "reported", "first", "second")


def table(number: int | str) -> pd.DataFrame:
    """One table by its number (3 and 4 are one), or `"figure2"`; percentages are out of 100.

    UserError names the tables that there are.
    """
    names = {path.stem: path for path in sorted(PAPER.glob("*.csv"))}
    wanted = str(number)
    if wanted.isdigit():
        wanted = next((n for n in names if f"{int(wanted):02d}" in n[5:].split("_")), wanted)
    if wanted not in names:
        raise UserError(f"there is no table {number} in data/paper; there are {', '.join(names)}")
    return pd.read_csv(names[wanted])


def row(number: int | str, method: str, model: str | None = None) -> pd.Series:
    """The one row of a method, and of a model where the table has several.

    UserError where there is none, or more than one.
    """
    found = table(number)
    chosen = found[found["method"] == method]
    if model is not None:
        chosen = chosen[chosen["model"] == model]
    if len(chosen) != 1:
        known = ", ".join(f"{r.method} ({r.model})" for r in found.itertuples())
        raise UserError(
            f"table {number} has {len(chosen)} rows of {method} {model or ''}; it holds {known}"
        )
    return chosen.iloc[0]


def value(number: int | str, method: str, column: str, model: str | None = None) -> float | None:
    """One number, or None where the paper gives none. UserError for an unknown row or column."""
    found = row(number, method, model)
    if column not in found:
        raise UserError(f"table {number} has no column {column}; it has {', '.join(found.index)}")
    return None if pd.isna(found[column]) else float(found[column])

"""Put methods that were compared later into a committed comparison: `join.py FOLDER INTO`.

Both folders hold a `comparison.json` of notebook 05 on the same model, data and seed. The runs may
be joined where the unedited model reads the same in both: no flag on test, nor the rate on
validation. The result says from which commit each later part is. Minutes of the two do not compare.
Tables and figures of INTO are made anew; a method that both have is taken from FOLDER.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redraw import of_comparison

from surgery_lib import files, report
from surgery_lib.errors import UserError
from surgery_lib.experiments import comparison as compare
from surgery_lib.profile import load_profile
from surgery_lib.report import advice, comparison
from surgery_lib.selection.outcome import ModelReading, Outcome
from surgery_lib.study.study import unwrap

# Of a run, and of its result.
SAME = ("profile", "behaviour", "seed", "revision")
READ = ("trials", "scorer", "guide", "start")


def about(run: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common; older ones do not say their number format."""
    if (dtype := run.get("dtype")) is None:
        dtype = load_profile(run["profile"], run["parameters"]).model.dtype
    found = {name: run.get(name) for name in SAME} | {"dtype": dtype}
    return found | {name: run["result"][name] for name in READ}


def check(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """UserError where two comparisons are not of the same thing."""
    one, other = about(first), about(second)
    for name in one:
        if one[name] != other[name]:
            raise UserError(f"{name} is {one[name]} in one and {other[name]} in the other")
    bases = [run["result"]["base"] for run in (first, second)]
    values = [base["test"]["perplexity"]["value"] for base in bases]
    if bases[0]["flags"] != bases[1]["flags"] or not math.isclose(*values, rel_tol=1e-3):
        raise UserError("the unedited model reads otherwise: run all methods on one machine")


def joined(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The result of both: methods of `old` in its order, then those of `new` it did not have."""
    found = {one["name"]: one for one in old["outcomes"]} | {
        one["name"]: one for one in new["outcomes"]
    }
    outcomes = [Outcome.read(one) for one in found.values()]
    base, scorer = ModelReading(**old["base"]), old["scorer"]
    return {
        **old,
        "unsearched": list(dict.fromkeys([*old["unsearched"], *new["unsearched"]])),
        "outcomes": list(found.values()),
        "against_paper": {one: advice.against_paper(outcomes, one, scorer) for one in compare.HELD},
        "closing": "\n".join(advice.closing(outcomes, base, one, scorer) for one in compare.HELD),
    }


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Every table of notebook 05, by name."""
    outcomes = [Outcome.read(one) for one in result["outcomes"]]
    base, scorer, budget = ModelReading(**result["base"]), result["scorer"], compare.BUDGETS[1]
    guides = {f"guide_{one}": advice.guide(outcomes, one, budget, scorer) for one in compare.HELD}
    return comparison.tables(outcomes, base, scorer, budget) | guides


def main(new: Path, old: Path) -> None:
    """Join, and write INTO's result, tables and figures."""
    paths = [folder / "comparison.json" for folder in (new, old)]
    whole = [files.read_json(path) for path in paths]
    check(*whole)
    result = joined(*(unwrap(one, path) for one, path in zip(whole, paths, strict=True)))
    origin = {name: whole[0][name] for name in ("commit", "versions", "settings", "parameters")}
    origin = {"methods": [one["name"] for one in whole[0]["result"]["outcomes"]], **origin}
    parts = [*whole[1].get("joined", []), origin]
    files.write_json(old / "comparison.json", {**whole[1], "joined": parts, "result": result})
    for name, text in tables(result).items():
        files.write_text(old / "tables" / f"{name}.md", text)
    report.style()
    for name, draw in of_comparison(result):
        report.save(draw(), old / "figures", name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python workflow/join.py FOLDER INTO")
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")

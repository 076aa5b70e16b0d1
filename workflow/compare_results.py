"""Compare the metrics of two results folders: `compare_results.py COMMITTED MADE_AGAIN`.

Every result file of MADE_AGAIN must be in COMMITTED with the same fields. A number may differ by
the tolerance of the first pattern that fits its `file:field`: other processors sum in other orders,
and a greedy continuation may then take another turn. Exits with 1 and a line for each difference.
"""

import fnmatch
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_lib.errors import UserError
from surgery_lib.profile import flatten


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be off: the larger of the two. None: the field is not compared."""

    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, old: float, new: float) -> bool:
        return abs(old - new) <= max(self.absolute, self.relative * max(abs(old), abs(new)))


EXACT = Tolerance()
# First match wins; the last holds for shares, scores and everything else that is about 1.
TOLERANCES: list[tuple[str, Tolerance | None]] = [
    # Search paths may fork where two points are as good; the chosen point is compared, exactly.
    ("*:sieve*", None),
    ("*:sweep*", None),
    ("*seconds*", None),
    ("*fingerprint*", None),
    ("*sha256*", None),
    ("*.p", None),
    # Settings, not metrics: a study refuses a folder of other settings by itself, and a profile may
    # gain one that older results do not name.
    ("*/study.json:*", None),
    ("*.n", EXACT),
    ("*.length", EXACT),
    ("*.layer", EXACT),
    ("*.fraction", EXACT),
    ("*.strength", EXACT),
    ("*.window", EXACT),
    ("*counts.*", Tolerance(absolute=3, relative=0.10)),
    ("*rows_per_block.*", Tolerance(absolute=3, relative=0.05)),
    ("*:scores.*", Tolerance(absolute=3, relative=0.10)),
    ("*perplexity*", Tolerance(absolute=0.05, relative=0.02)),
    ("*kl*", Tolerance(absolute=0.02, relative=0.10)),
    # A group has 30 prompts: one continuation of another turn moves its rate by 0.033, and the ends
    # of its interval by 0.05.
    ("*.groups.*", Tolerance(absolute=0.06)),
    ("*", Tolerance(absolute=0.03, relative=0.02)),
]


def tolerance(name: str) -> Tolerance | None:
    """The tolerance of one `file:field`."""
    return next(value for pattern, value in TOLERANCES if fnmatch.fnmatch(name, pattern))


def differs(name: str, old: Any, new: Any) -> str | None:
    """What is different about one field, or None."""
    allowed = tolerance(name)
    if allowed is None or old == new:
        return None
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in (old, new)]
    if not all(numbers):
        return f"{old!r} became {new!r}"
    return None if allowed.allows(old, new) else f"{old:.6g} became {new:.6g}"


def leaves(payload: Any) -> dict[str, Any]:
    """Dotted key → leaf, every list entered by its index."""
    if isinstance(payload, list):
        payload = {str(index): item for index, item in enumerate(payload)}
    if not isinstance(payload, dict):
        return {"": payload}
    flat: dict[str, Any] = {}
    for key, value in flatten(payload).items():
        inner = leaves(value) if isinstance(value, list) else {"": value}
        flat |= {f"{key}.{rest}".rstrip("."): leaf for rest, leaf in inner.items()}
    return flat


def result(path: Path) -> dict[str, Any]:
    """The fields of one result file, without its provenance."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return leaves(document.get("result", document))


def compare(committed: Path, again: Path) -> list[str]:
    """A line for each difference; UserError where there is nothing to compare."""
    found = sorted(path.relative_to(again) for path in again.rglob("*.json"))
    found = [path for path in found if not {"logs", "executed"} & set(path.parts)]
    if not found:
        raise UserError(f"{again} holds no results; run make reproduce RESULTS={again} first")
    lines = []
    for path in found:
        if not (committed / path).is_file():
            lines.append(f"{path}: not in {committed}")
            continue
        old, new = result(committed / path), result(again / path)
        lone = [key for key in sorted(old.keys() ^ new.keys()) if tolerance(f"{path}:{key}")]
        lines += [f"{path}:{key}: only on one side" for key in lone]
        for key in sorted(old.keys() & new.keys()):
            difference = differs(f"{path}:{key}", old[key], new[key])
            if difference:
                lines.append(f"{path}:{key}: {difference}")
    print(f"{len(found)} result files compared, {len(lines)} differences")
    return lines


if __name__ == "__main__":
    try:
        differences = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join(differences))
    sys.exit(1 if differences else 0)

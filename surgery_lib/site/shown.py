"""What the pages are filled with: pictures, and tables with their source."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from surgery_lib.report import tables
from surgery_lib.site import beside, measured
from surgery_lib.site.runs import Run
from surgery_lib.site.sources import Source

# What a table of a results file may stumble over when the file is of another version.
UNFIT: tuple[type[Exception], ...] = (LookupError, TypeError, ValueError, AttributeError, OSError)
UNFIT += (StopIteration, OverflowError, RecursionError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Picture:
    """A figure as the pages show it; a `photograph` keeps its colours in the dark."""

    address: str
    caption: str
    alternative: str
    photograph: bool = False


@dataclass(frozen=True)
class Shown:
    """A table as the pages show it, and where its numbers come from."""

    title: str
    html: str
    source: Source | None

    @property
    def anchor(self) -> str:
        """Its name in addresses."""
        return "table-" + re.sub(r"\W+", "-", self.title.lower()).strip("-")


def tried(make: Callable[[], Any], what: str, problems: list[str]) -> Any:
    """What `make` makes, or None and a sentence in `problems`."""
    try:
        return make()
    except UNFIT as error:
        problems.append(f"{what} could not be shown ({type(error).__name__}: {error})")
        return None


def own_tables(run: Run) -> list[tuple[str, str, Callable[[Any], str]]]:
    """Title, result file and maker of the tables that the site makes of a run's results itself."""
    behaviour = run.behaviour or ""
    made: list[tuple[str, str, Callable[[Any], str]]] = [
        ("Probes", "probe.json", lambda result: tables.probes(result["probes"])),
        ("The probe beside the paper's", "probe.json", lambda r: beside.probe(r, behaviour)),
        ("Base, edited, controls", "evaluation.json", tables.summary),
        (
            "Capability",
            "evaluation.json",
            lambda result: tables.capability_table(result.get("capability")),
        ),
    ]
    if behaviour == "toxicity":
        made.append(("Beside the paper's ablation", "evaluation.json", beside.controls))
    if "patient.json" in run.documents:
        made.append(("The patient", "patient.json", lambda r: measured.table(r, spoken=True)))
    return made


def provenance(run: Run) -> str:
    """Commit, versions and inputs of every result of a run."""
    kept = ("settings", "commit", "revision", "versions", "parameters", "inputs")
    steps = {name: {key: one.get(key) for key in kept} for name, one in run.documents.items()}
    return measured.table(steps, "result", "made with")

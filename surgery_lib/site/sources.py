"""Where each table of a study comes from: the result that holds its numbers, the command."""

from dataclasses import dataclass

from surgery_lib.site.runs import Run
from surgery_lib.study.steps import STEPS

# A kept table's name by its beginning → the notebook that writes it. The longest that fits counts.
WRITTEN_BY = {
    "evaluation": "04_evaluate",
    "compare_": "05_compare",
    "guide_": "05_compare",
    "ablate_": "06_ablate",
    "protocols": "07_protocols",
    "standard": "07_protocols",
    "capability_changes": "07_protocols",
    "by_group": "07_protocols",
    "verdict": "07_protocols",
    "paper_tables": "07_protocols",
    "fingerprint": "08_fingerprint",
    "drift": "09_drift",
    "attack": "10_attack",
    "code": "11_code",
    "retrieval": "12_retrieval",
}


@dataclass(frozen=True)
class Source:
    """The result file that a table is made of, and the command that makes it again."""

    file: str
    command: str


def of_table(run: Run, name: str) -> Source | None:
    """The source of a table that a notebook wrote, by the table's name; None where unknown."""
    fitting = [start for start in WRITTEN_BY if name.startswith(start)]
    if not fitting:
        return None
    return of_result(run, STEPS[WRITTEN_BY[max(fitting, key=len)]].writes)


def of_result(run: Run, name: str) -> Source | None:
    """The source of what a result file holds; None where no notebook writes such a file."""
    step = next((step for step in STEPS.values() if step.writes == name), None)
    if step is None:
        return None
    profile, *place = run.parts
    words = ["make reproduce", f"PROFILE={profile}"]
    if len(place) == 2:
        words += [f"BEHAVIOUR={place[0]}", f"SEED={place[1].removeprefix('seed')}"]
    if step.long:
        words.append(f"NOTEBOOKS={step.name}")
    return Source("/".join(["results", *run.parts, name]), " ".join(words))


def of_notebook(name: str) -> str:
    """The command that executes a notebook; of one that is no step, what opens it."""
    if name == "grid":
        return "make grid"
    if name not in STEPS:
        return "make lab"
    return "make reproduce" + (f" NOTEBOOKS={name}" if STEPS[name].long else "")

"""The runs that lie under a results folder, whatever each of them has so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.site.captions import CAPTIONS
from surgery_lib.study.steps import STEPS

THRESHOLD = 0.5


@dataclass
class Run:
    """One folder: its documents (results with their provenance) and what is wrong with it."""

    folder: Path
    name: str
    slug: str
    behaviour: str | None
    parts: tuple[str, ...] = ()  # the folders from the results down to it
    documents: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def result(self, name: str) -> Any:
        """The payload of a result, or None where it is not there."""
        return self.documents[name]["result"] if name in self.documents else None

    @property
    def model(self) -> str:
        """The model's id, without a path of somebody's machine."""
        settings = self.result("study.json") or {}
        model = settings.get("model")
        found = str(model.get("id", "unknown") if isinstance(model, dict) else "unknown")
        return Path(found).name if Path(found).is_absolute() else found

    @property
    def about(self) -> str:
        """The profile's sentence about itself."""
        return str((self.result("study.json") or {}).get("about", ""))

    @property
    def missing(self) -> list[tuple[str, str]]:
        """(file, notebook that writes it) of what every study has and this one has not."""
        own = [step for step in STEPS.values() if step.shared != bool(self.behaviour)]
        wanted = [step for step in own if step.profile in (None, self.folder.name)]
        return [
            (step.writes, step.name)
            for step in wanted
            if not step.long and step.writes not in self.documents
        ]

    def pictures(self) -> list[Path]:
        """Every figure, as a vector where there is one, in the order of the notebooks."""
        folder = self.folder / "figures"
        found = {path.stem: path for path in sorted(folder.glob("*.png"))}
        found |= {path.stem: path for path in sorted(folder.glob("*.svg"))}
        order = {name: place for place, name in enumerate(CAPTIONS)}
        return sorted(
            found.values(), key=lambda path: (order.get(path.stem, len(order)), path.stem)
        )

    def tables(self) -> list[Path]:
        """Every table that the notebooks wrote."""
        return sorted((self.folder / "tables").glob("*.md"))

    def executed(self) -> list[Path]:
        """The executed notebooks as they were run, with their logs."""
        return sorted((self.folder / "executed").glob("*.ipynb"))

    def notebooks(self) -> list[Path]:
        """The executed notebooks, of each the newest run that is here: a run's own, or the kept."""
        found = {path.name: path for path in sorted((self.folder / "notebooks").glob("*.ipynb"))}
        found |= {path.name: path for path in self.executed()}
        return [found[name] for name in sorted(found)]

    def thresholds(self) -> Mapping[str, float]:
        """Scorer → score from which a text counts as showing the behaviour."""
        settings = self.result("study.json") or {}
        try:
            found = settings.get("behaviours", {}).get(self.behaviour, {})
            scorers = [*found.get("report", []), found.get("guide") or {}]
            return {
                s["name"]: float(s.get("threshold", THRESHOLD)) for s in scorers if s.get("name")
            }
        except (AttributeError, TypeError, ValueError):  # settings of another form
            return {}


def find(results: Path) -> list[Run]:
    """Every run under `results`, in the order of their paths.

    UserError where the folder does not exist; a broken file becomes one of its run's problems.
    """
    if not results.is_dir():
        raise UserError(
            f"there is no folder {results}; `make reproduce` makes one, or give RESULTS="
        )
    return [_run(path.parent, results) for path in sorted(results.rglob("study.json"))]


def _run(folder: Path, results: Path) -> Run:
    parts = folder.relative_to(results).parts
    behaviour = parts[-2] if len(parts) > 1 and parts[-1].startswith("seed") else None
    name = " · ".join(parts).replace("seed", "seed ")
    run = Run(folder, name or folder.name, "-".join(parts) or "run", behaviour, parts or ("run",))
    for wanted in ("study.json", *(step.writes for step in STEPS.values())):
        path = folder / wanted
        if not path.is_file():
            continue
        try:
            document = files.read_json(path)
        except UserError as error:
            run.problems.append(str(error).replace(f"{folder}/", ""))
            continue
        if isinstance(document, dict) and isinstance(document.get("result"), dict):
            run.documents[wanted] = document
        else:
            run.problems.append(f"{wanted} holds no result; delete it and run its step again")
    return run

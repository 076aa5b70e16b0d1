"""`make report`: a static site from the results, which loads nothing from anywhere.

`python -m surgery_lib.site.build results` writes `results/site/`. It shows what is there, and
names what is missing or broken instead of stopping at it.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from tqdm.auto import tqdm

import surgery_lib
from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.report import tables
from surgery_lib.site import beside, cells, completions, measured
from surgery_lib.site.captions import alternative, caption
from surgery_lib.site.folder import MARK, check_replaceable
from surgery_lib.site.markup import markdown, veil_where
from surgery_lib.site.runs import Run, find

SITE = "site"
IMAGES = "images"
# What a table of a results file may stumble over when the file is of another version.
UNFIT: tuple[type[Exception], ...] = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    StopIteration,
    OSError,
)
UNFIT = (*UNFIT, OverflowError, RecursionError, SyntaxError, Image.DecompressionBombError)
# In a vector figure, what a browser would run if the picture were opened by itself.
ACTIVE = re.compile(
    rb"<script\b.*?(</script\s*>|\Z)|\son\w+\s*=\s*(\"[^\"]*\"|'[^']*')", re.S | re.I
)


@dataclass(frozen=True)
class Picture:
    """A figure as the pages show it."""

    address: str
    caption: str
    alternative: str


class Site:
    """One site being written: the runs, the notebooks, the folder."""

    def __init__(self, results: Path, folder: Path) -> None:
        self.results = results
        self.folder = folder
        self.runs = find(results)
        self.sources = sorted((home() / "notebooks").glob("*.ipynb"))
        self.unexecuted = {
            path.name: f"notebook-{path.stem}.html"
            for path in self.sources
            if not any(path.name == one.name for run in self.runs for one in run.notebooks())
        }
        self.templates = Environment(
            loader=PackageLoader("surgery_lib.site"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals.update(
            version=surgery_lib.__version__, code_colours=cells.stylesheet()
        )

    def write(self) -> list[Path]:
        """Write every page; returns their paths."""
        pages = {"index.html": self._index(), "benchmarks.html": self._benchmarks()}
        for run in tqdm(self.runs, desc="studies", unit="study"):
            pages[f"{run.slug}.html"] = self._study(run)
        for path in self.sources:
            if path.name in self.unexecuted:
                pages[self.unexecuted[path.name]] = self._notebook(path, None)
        for name, html in pages.items():
            files.write_text(self.folder / name, html)
        return sorted(self.folder.glob("*.html"))

    def _render(self, template: str, **values: Any) -> str:
        return self.templates.get_template(template).render(**values)

    def _index(self) -> str:
        problems: list[str] = []
        lines = [
            (
                run.behaviour,
                f"[{run.name}]({run.slug}.html) {run.model}",
                run.result("evaluation.json"),
            )
            for run in self.runs
            if run.behaviour and run.result("evaluation.json")
        ]
        sound = []
        for line in lines:
            if _tried(partial(beside.headline, [line]), f"{line[1]}, evaluation", problems):
                sound.append(line)
        overview = next(
            (
                self._picture(path, run)
                for wanted in ("overview", "variants", "frontier")
                for run in self.runs
                for path in run.pictures()
                if path.stem == wanted
            ),
            None,
        )
        return self._render(
            "index.html",
            overview=overview,
            headline=self._markdown(beside.headline(sound)) if sound else "",
            runs=self.runs,
            executed={
                path.stem: [
                    (run.name, f"{run.slug}-{path.stem}.html")
                    for run in self.runs
                    if any(one.name == path.name for one in run.notebooks())
                ]
                for path in self.sources
            },
            unexecuted={Path(name).stem: page for name, page in self.unexecuted.items()},
            results=self.results.name,
            problems=problems,
        )

    def _study(self, run: Run) -> str:
        found = completions.rows(run)
        problems = run.problems
        flagged = _tried(lambda: completions.flagged(found, run), "completions.jsonl", problems)
        hidden = flagged or set()
        for path in run.notebooks():
            name = f"{run.slug}-{path.stem}.html"
            files.write_text(self.folder / name, self._notebook(path, run, hidden))
        shown, total = _tried(
            lambda: completions.pairs(found, run), "completions.jsonl", problems
        ) or ([], 0)
        kept = [
            (path.stem.replace("_", " "), veil_where(self._markdown(text), hidden))
            for path in run.tables()
            for text in [_tried(partial(files.read_text, path), path.name, problems)]
            if text is not None
        ]
        return self._render(
            "study.html",
            run=run,
            verdict=self._made(run, "evaluation.json", tables.verdict),
            tables=[(title, html) for title, html in self._own_tables(run) if html],
            kept=kept,
            pictures=[self._picture(path, run) for path in run.pictures()],
            examples=_tried(lambda: completions.examples(run), "examples", problems) or [],
            pairs=shown,
            total=total,
            notebooks=[(path.stem, f"{run.slug}-{path.stem}.html") for path in run.notebooks()],
            provenance=self._markdown(_provenance(run)),
            settings=self._markdown(measured.table(run.result("study.json") or {}, "setting")),
            problems=list(dict.fromkeys(problems)),
        )

    def _own_tables(self, run: Run) -> list[tuple[str, str]]:
        behaviour = run.behaviour or ""
        made = [
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
        found = [(title, self._made(run, name, make)) for title, name, make in made]
        if "patient.json" in run.documents:
            found.append(("The patient", self._made(run, "patient.json", measured.table)))
        return found

    def _made(self, run: Run, name: str, make: Callable[[Any], str]) -> str:
        """HTML made from a result; empty, with a problem noted, where the result does not fit."""
        result = run.result(name)
        if result is None:
            return ""
        return self._markdown(_tried(lambda: make(result), name, run.problems) or "")

    def _notebook(self, path: Path, run: Run | None, flagged: Sequence[str] | set[str] = ()) -> str:
        pages = dict(self.unexecuted)
        for one in [
            *self.runs,
            *([run] if run else []),
        ]:  # this run's own pages come last: they win
            pages |= {other.name: f"{one.slug}-{other.stem}.html" for other in one.notebooks()}
        problems: list[str] = []
        title, body = path.stem, ""
        try:
            notebook = cells.read(path)
            title = cells.title(notebook, path.stem)
            body = cells.body(notebook, pages, flagged, self._keep)
        except UserError as error:
            problems.append(str(error))
        return self._render(
            "notebook.html", name=path.stem, title=title, body=body, run=run, problems=problems
        )

    def _benchmarks(self) -> str:
        problems: list[str] = []
        found = []
        for path in sorted((self.results / "benchmarks").glob("*.json")):
            try:
                content = files.read_json(path)
            except UserError as error:
                problems.append(str(error).replace(f"{path.parent}/", ""))
                continue
            made = _tried(partial(measured.table, content, measured="median"), path.name, problems)
            found.append((path.stem.replace("_", " "), self._markdown(made or "")))
        return self._render("benchmarks.html", benchmarks=found, problems=problems)

    def _markdown(self, text: str) -> str:
        local = {f"{run.slug}.html": f"{run.slug}.html" for run in self.runs}
        return markdown(text, local)

    def _picture(self, path: Path, run: Run) -> Picture:
        content = path.read_bytes()
        name = f"{run.slug}-{path.name}"
        target = self.folder / IMAGES / name
        if path.suffix == ".png":
            # One broken picture is shown as it is and named, and the other pages are written.
            made = _tried(lambda: cells.smaller(content), path.name, run.problems) or content
        else:
            made = ACTIVE.sub(b"", content)
        with files.atomic(target) as temporary:
            temporary.write_bytes(made)
        return Picture(f"{IMAGES}/{name}", caption(path.stem), alternative(path))

    def _keep(self, png: bytes) -> str:
        """Keep a notebook's picture under the name of its content; returns its address."""
        name = f"{IMAGES}/{hashlib.sha256(png).hexdigest()[:16]}.png"
        with files.atomic(self.folder / name) as temporary:
            temporary.write_bytes(png)
        return name


def _tried(make: Callable[[], Any], what: str, problems: list[str]) -> Any:
    """What `make` makes, or None and a sentence in `problems`."""
    try:
        return make()
    except UNFIT as error:
        problems.append(f"{what} could not be shown ({type(error).__name__}: {error})")
        return None


def _provenance(run: Run) -> str:
    """Commit, versions and inputs of every result of a run."""
    documents: Mapping[str, Any] = run.documents
    kept = ("settings", "commit", "versions", "parameters", "inputs")
    steps = {name: {key: one.get(key) for key in kept} for name, one in documents.items()}
    return measured.table(steps, "result", "made with")


def build(results: Path | str = "results", folder: Path | str | None = None) -> list[Path]:
    """Write the site of a results folder, `<results>/site/` by default; returns its pages.

    UserError where there is no such results folder or the site's folder holds something else.
    """
    results = Path(results).resolve()
    target = Path(folder).absolute() if folder else results / SITE
    check_replaceable(target)
    # Built beside its place: until every page is written, the old site stays.
    fresh = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        pages = Site(results, fresh).write()
        files.write_text(fresh / MARK, "Written by surgery_lib.site.build, which may replace it.\n")
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    except OSError as error:
        raise UserError(f"{target} could not be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return [target / page.name for page in pages]


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when the site is written."""
    parser = argparse.ArgumentParser(prog="python -m surgery_lib.site.build", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--to", type=Path, help="folder of the site, RESULTS/site by default")
    given = parser.parse_args(arguments)
    try:
        pages = build(given.results, given.to)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = pages[0].parent
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{len(pages)} pages, {size / 1e6:.1f} MB: open {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

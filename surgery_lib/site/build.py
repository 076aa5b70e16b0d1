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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm.auto import tqdm

import surgery_lib
from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.report import asked, tables
from surgery_lib.site import beside, cells, completions, manual, measured, sources
from surgery_lib.site.captions import alternative, caption
from surgery_lib.site.folder import MARK, check_replaceable
from surgery_lib.site.markup import markdown, veil_where
from surgery_lib.site.runs import Run, find
from surgery_lib.site.shown import Picture, Shown, own_tables, provenance, tried

SITE = "site"
IMAGES = "images"
# In a vector figure, what a browser would run if the picture were opened by itself.
ACTIVE = re.compile(
    rb"<script\b.*?(</script\s*>|\Z)|\son\w+\s*=\s*(\"[^\"]*\"|'[^']*')", re.S | re.I
)


class Site:
    """One site being written: the runs, the notebooks, the folder."""

    def __init__(self, results: Path, folder: Path) -> None:
        self.results = results
        self.folder = folder
        self.runs = find(results)
        self.sources = sorted((home() / "notebooks").glob("*.ipynb"))
        self.manual = manual.found()
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
            version=surgery_lib.__version__,
            code_colours=cells.stylesheet(),
            command=sources.of_notebook,
        )

    def write(self) -> list[Path]:
        """Write every page; returns their paths."""
        pages = {
            "index.html": self._index(),
            "benchmarks.html": self._benchmarks(),
            "diagnostics.html": self._diagnostics(),
        }
        pages |= {manual.address(name): self._manual(name) for name in self.manual}
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
            (run.behaviour, f"[{run.name}]({run.slug}.html) {run.model}", result)
            for run in self.runs
            if run.behaviour and (result := run.result("evaluation.json"))
        ]
        sound = [
            line
            for line in lines
            if tried(partial(beside.headline, [line]), f"{line[1]}, evaluation", problems)
        ]
        found = [(path, run) for run in self.runs for path in run.pictures()]
        wanted = ("overview", "variants", "frontier")
        best = [one for stem in wanted for one in found if one[0].stem == stem]
        overview = self._picture(*best[0]) if best else None
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
            manual=[(manual.title(name), manual.address(name)) for name in self.manual],
            results=self.results.name,
            problems=problems,
        )

    def _study(self, run: Run) -> str:
        found = completions.rows(run)
        problems = run.problems
        flagged = tried(lambda: completions.flagged(found, run), "completions.jsonl", problems)
        hidden = flagged or set()
        for path in run.notebooks():
            name = f"{run.slug}-{path.stem}.html"
            files.write_text(self.folder / name, self._notebook(path, run, hidden))
        shown, total = tried(
            lambda: completions.pairs(found, run), "completions.jsonl", problems
        ) or ([], 0)
        kept = [
            Shown(
                path.stem.replace("_", " "),
                veil_where(self._markdown(text), hidden),
                sources.of_table(run, path.stem),
            )
            for path in run.tables()
            for text in [tried(partial(files.read_text, path), path.name, problems)]
            if text is not None
        ]
        return self._render(
            "study.html",
            run=run,
            verdict=self._made(run, "evaluation.json", tables.verdict),
            verdict_source=sources.of_result(run, "evaluation.json"),
            tables=[one for one in self._own_tables(run) if one.html],
            kept=kept,
            pictures=[self._picture(path, run) for path in run.pictures()],
            examples=tried(lambda: completions.examples(run), "examples", problems) or [],
            pairs=shown,
            total=total,
            notebooks=[(path.stem, f"{run.slug}-{path.stem}.html") for path in run.notebooks()],
            provenance=self._markdown(provenance(run)),
            settings=self._markdown(measured.table(run.result("study.json") or {}, "setting")),
            problems=list(dict.fromkeys(problems)),
        )

    def _own_tables(self, run: Run) -> list[Shown]:
        return [
            Shown(title, self._made(run, name, make), sources.of_result(run, name))
            for title, name, make in own_tables(run)
        ]

    def _made(self, run: Run, name: str, make: Callable[[Any], str]) -> str:
        """HTML made from a result; empty, with a problem noted, where the result does not fit."""
        result = run.result(name)
        if result is None:
            return ""
        return self._markdown(tried(lambda: make(result), name, run.problems) or "")

    def _notebook(self, path: Path, run: Run | None, flagged: Sequence[str] | set[str] = ()) -> str:
        pages = self._notebooks()
        if run:  # this run's own win
            pages |= {other.name: f"{run.slug}-{other.stem}.html" for other in run.notebooks()}
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
            table = partial(measured.table, content, measured="median", spoken=True)
            made = tried(table, path.name, problems)
            found.append((path.stem.replace("_", " "), self._markdown(made or "")))
        return self._render("benchmarks.html", benchmarks=found, problems=problems)

    def _manual(self, name: str) -> str:
        pages = {f"{other}.md": manual.address(other) for other in self.manual}
        problems: list[str] = []
        pages |= self._notebooks()
        html = tried(lambda: manual.body(self.manual[name], pages), name, problems)
        return self._render(
            "manual.html", title=manual.title(name), body=html or "", problems=problems
        )

    def _diagnostics(self) -> str:
        problems: list[str] = []
        studies = {run.name: run.result for run in self.runs if run.behaviour}
        found = tried(lambda: asked.answers(studies), "diagnostics", problems) or []
        return self._render(
            "diagnostics.html",
            answers=found,
            notebooks=self._notebooks(),
            runs={run.name: run for run in self.runs},
            source=sources.of_result,
            problems=problems,
        )

    def _notebooks(self) -> dict[str, str]:
        """A notebook's file name → a page that shows it, executed where there is such a one."""
        pages = dict(self.unexecuted)
        for run in self.runs:
            pages |= {path.name: f"{run.slug}-{path.stem}.html" for path in run.notebooks()}
        return pages

    def _markdown(self, text: str) -> str:
        return markdown(text, {f"{run.slug}.html": f"{run.slug}.html" for run in self.runs})

    def _picture(self, path: Path, run: Run) -> Picture:
        content = path.read_bytes()
        name = f"{run.slug}-{path.name}"
        target = self.folder / IMAGES / name
        if path.suffix == ".png":
            # One broken picture is shown as it is and named, and the other pages are written.
            made = tried(lambda: cells.smaller(content), path.name, run.problems) or content
        else:
            made = ACTIVE.sub(b"", content)
        with files.atomic(target) as temporary:
            temporary.write_bytes(made)
        shown = (caption(path.stem), alternative(path))
        return Picture(f"{IMAGES}/{name}", *shown, photograph="portraits" in path.stem)

    def _keep(self, png: bytes) -> str:
        """Keep a notebook's picture under the name of its content; returns its address."""
        name = f"{IMAGES}/{hashlib.sha256(png).hexdigest()[:16]}.png"
        with files.atomic(self.folder / name) as temporary:
            temporary.write_bytes(png)
        return name


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

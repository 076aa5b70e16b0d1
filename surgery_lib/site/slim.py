"""`make executed`: executed notebooks as they are committed, small and without what has no place.

`python -m surgery_lib.site.slim RESULTS/PROFILE` writes a copy of every `executed/NN.ipynb` beside
it, into `notebooks/`: figures at README size and with a palette, no progress bars, widgets, times
or paths of a machine, and, of a published model, none of the texts that it wrote.
"""

import argparse
import base64
import io
import json
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.site import cells, completions, runs
from surgery_lib.site.markup import PANEL, WORDS, markdown, plain, squeeze

LIMIT = 300_000  # bytes of a copy
WIDTHS = (900, 720, 560)  # pixels of a figure: the widest at which the copy keeps the limit
KEPT = ("text/markdown", "text/html", "image/png", "text/plain")  # of an output the first that is
EMBEDDED = "embedded:"  # models of this package, whose texts insult nobody, and may be shown
LEFT_OUT = "(left out here: {}; run the notebook to see it)"
RESULTS = re.compile(r"^results = ([\"'])(/[^\"']*)\1$", re.MULTILINE)
LINK = re.compile(r"\]\((\w+\.ipynb)\)")


def slim(notebook: Any, place: Path, flagged: Collection[str] = (), *, words: bool = True) -> str:
    """The notebook as text of a file in the folder `place`, at most `LIMIT` bytes.

    `words`: whether tables of what the model wrote may stand in it; `flagged` texts never do
    where they may not. UserError where even the smallest figures leave it too large.
    """
    for width in WIDTHS:
        text = _text(notebook, place, flagged, words, width)
        if len(text.encode()) <= LIMIT:
            return text
    raise UserError(
        f"the notebook has {len(text.encode()) // 1000} kB without its logs, more than "
        f"{LIMIT // 1000}; let it print less"
    )


def _text(notebook: Any, place: Path, flagged: Collection[str], words: bool, width: int) -> str:
    clean = _cleaner(notebook)
    made = nbformat.v4.new_notebook(
        metadata={
            key: notebook.metadata[key]
            for key in ("kernelspec", "language_info")
            if key in notebook.metadata
        }
    )
    # The version of Python is no result.
    made.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        name = str(cell.get("id", number))
        if cell.cell_type != "code":
            source = LINK.sub(lambda found: f"]({_beside(found[1], place)})", cell.source)
            made.cells.append(nbformat.v4.new_markdown_cell(source, id=name))
            continue
        outputs = [
            kept
            for output in cell.outputs
            if (kept := _output(output, flagged, words, width, clean)) is not None
        ]
        made.cells.append(
            nbformat.v4.new_code_cell(
                clean(cell.source),
                id=name,
                execution_count=cell.execution_count,
                outputs=outputs,
                metadata={"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {},
            )
        )
    return json.dumps(made, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _cleaner(notebook: Any) -> Callable[[str], str]:
    """Takes the paths of the machine that ran it out of a text."""
    sources = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    roots = [(found[2], "results") for found in RESULTS.finditer(sources)]
    roots += [(str(home()), "."), (str(Path.home()), "~")]

    def clean(text: str) -> str:
        for root, instead in roots:
            text = re.sub(re.escape(root) + r"(?![\w-])", instead, text) if len(root) > 1 else text
        return text

    return clean


def _beside(name: str, place: Path) -> str:
    """Where a link to another notebook leads from a copy in `place`."""
    if (place / name).is_file() or (place.parent / "executed" / name).is_file():
        return name
    try:
        depth = len(place.resolve().relative_to(home().resolve()).parts)
    except ValueError:  # results outside the repository
        return name
    return "../" * depth + f"notebooks/{name}"


def _output(
    output: Any, flagged: Collection[str], words: bool, width: int, clean: Callable[[str], str]
) -> Any:
    """The output as it is kept, or None."""
    if output.output_type == "stream":
        text = "\n".join(line.rsplit("\r", 1)[-1] for line in output.text.split("\n"))
        if output.name == "stderr" or not text.strip():
            return None
        if not words and any(one in squeeze(text) for one in flagged):
            text = LEFT_OUT.format("it quotes what the model wrote") + "\n"
        return nbformat.v4.new_output("stream", name="stdout", text=clean(text))
    if output.output_type == "error":
        return nbformat.v4.new_output("error", ename=output.ename, evalue=clean(output.evalue))
    data = output.get("data") or {}
    if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
        return None
    kind = next((kind for kind in KEPT if kind in data), None)
    if kind is None:
        return None
    if kind == "image/png":
        kept = {kind: _figure(data[kind], width)}
    elif not words and _written(kind, data[kind], flagged):
        kept = {"text/plain": LEFT_OUT.format("what the model wrote")}
    else:
        kept = {kind: clean(data[kind])}
    return nbformat.v4.new_output("display_data", data=kept)


def _written(kind: str, text: str, flagged: Collection[str]) -> bool:
    """Whether an output is a table of a model's own words, or quotes a flagged text."""
    if PANEL in text:
        return True
    html = markdown(text) if kind == "text/markdown" else text
    headers = re.findall(r"<th[^>]*>(.*?)</th>", html, re.DOTALL)
    shown = plain(html)
    return any(WORDS.match(plain(one)) for one in headers) or any(one in shown for one in flagged)


def _figure(encoded: str, width: int) -> str:
    """A PNG at most `width` pixels wide, with a palette."""
    png = base64.b64decode(encoded)
    with Image.open(io.BytesIO(png)) as picture:
        if picture.width > width:
            height = round(picture.height * width / picture.width)
            buffer = io.BytesIO()
            picture.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "PNG")
            png = buffer.getvalue()
    return base64.b64encode(cells.smaller(png)).decode()


def keep(folder: Path) -> list[Path]:
    """Write the copies of every executed notebook under a folder of results; returns their paths.

    UserError where there is none.
    """
    written = []
    for run in runs.find(folder):
        words = run.model.startswith(EMBEDDED)
        flagged = set() if words else completions.flagged(completions.rows(run), run)
        for path in run.executed():
            place = run.folder / "notebooks"
            try:
                text = slim(cells.read(path), place, flagged, words=words)
            except UserError as error:
                raise UserError(f"{path.name}: {error}") from error
            files.write_text(place / path.name, text)
            written.append(place / path.name)
    if not written:
        raise UserError(f"no executed notebook lies under {folder}; `make reproduce` makes them")
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when the copies are written."""
    parser = argparse.ArgumentParser(prog="python -m surgery_lib.site.slim", description=__doc__)
    parser.add_argument("results", type=Path, help="a study's folder, results/PROFILE")
    given = parser.parse_args(arguments)
    try:
        for path in keep(given.results):
            print(f"{path} ({path.stat().st_size // 1000} kB)")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

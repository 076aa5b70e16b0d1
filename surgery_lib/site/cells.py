"""A notebook as HTML: its prose, its code folded away under it, and its outputs."""

import base64
import io
import re
from collections.abc import Callable, Collection, Mapping
from html import escape
from pathlib import Path
from typing import Any

import bleach
import nbformat
from nbconvert.filters import strip_ansi
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from surgery_lib.errors import UserError
from surgery_lib.site.captions import caption
from surgery_lib.site.markup import PANEL, markdown, plain, veil, veil_where

# What outputs that are HTML may keep: tables and plain formatting, nothing that loads or runs.
TAGS = {"table", "thead", "tbody", "tr", "th", "td", "caption", "p", "b", "i", "em", "strong"}
TAGS |= {"code", "pre", "ul", "ol", "li", "br", "sub", "sup"}
COLOURS = 64  # a figure needs no more, and takes a third of the space

Keep = Callable[[bytes], str]


def read(path: Path) -> Any:
    """The notebook; UserError where the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path.name} is no notebook ({reason}); run its step again") from error


def title(notebook: Any, fallback: str) -> str:
    """The notebook's first heading."""
    for cell in notebook.cells:
        found = re.match(r"#\s+(.+)", cell.source) if cell.cell_type == "markdown" else None
        if found:
            return found[1].strip()
    return fallback


def body(notebook: Any, pages: Mapping[str, str], flagged: Collection[str], keep: Keep) -> str:
    """All cells; `keep` takes a PNG's bytes and gives its address, `flagged` texts are veiled."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(markdown(cell.source, pages, math=True))
        elif cell.cell_type == "code":
            parts.append(_code(cell.source))
            shown = [_output(output, cell.source, pages, keep) for output in cell.outputs]
            parts += [
                html if html.startswith('<div class="veil">') else veil_where(html, flagged)
                for html in shown
                if html
            ]
    return "\n".join(parts)


def stylesheet() -> str:
    """The colours of code: one set for light, one for dark."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    keep = re.compile(r"^\.highlight \.\w+ \{.*", re.MULTILINE)
    night = "\n".join(keep.findall(dark))
    return (
        "\n".join(keep.findall(light))
        + "\n@media (prefers-color-scheme: dark) {\n"
        + night.replace(".highlight", ":root:not([data-theme=light]) .highlight")
        + "\n}\n"
        + night.replace(".highlight", ":root[data-theme=dark] .highlight")
    )


def _code(source: str) -> str:
    first = next((line for line in source.splitlines() if line.strip()), "")
    return (
        f"<details class=code><summary>Code <code>{escape(first[:60])}</code></summary>"
        f"{highlight(source, PythonLexer(), HtmlFormatter())}</details>"
    )


def _output(output: Any, source: str, pages: Mapping[str, str], keep: Keep) -> str:
    if output.output_type == "stream":
        # Progress bars rewrite their line; the last state is what a screen shows.
        text = "\n".join(line.rsplit("\r", 1)[-1] for line in output.text.split("\n"))
        return "" if output.name == "stderr" else _verbatim(text)
    if output.output_type == "error":
        return _verbatim(f"{output.ename}: {output.evalue}")
    data = output.get("data") or {}
    if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
        return ""  # a progress bar or a panel, which needs a running notebook
    if "image/png" in data:
        return _figure(data["image/png"], source, keep)
    if "text/markdown" in data:
        return markdown(data["text/markdown"], pages)
    if "text/html" in data:
        cleaned = bleach.clean(data["text/html"], tags=TAGS, attributes={}, strip=True)
        made = f'<div class="scroll" tabindex="0" role="region" aria-label="table">{cleaned}</div>'
        return (
            veil(made, "what the models wrote", block=True) if PANEL in data["text/html"] else made
        )
    return _verbatim(data.get("text/plain", ""))


def _verbatim(text: str) -> str:
    text = strip_ansi(text).strip("\n")
    return f'<pre class="output" tabindex="0">{escape(text)}</pre>' if text.strip() else ""


def _figure(encoded: str, source: str, keep: Keep) -> str:
    names = re.findall(r"""save_figure\(.*?, f?"([^"]+)"\)""", source)
    text = caption(names[-1]) if names else "Figure of the cell above"
    try:
        address = keep(smaller(base64.b64decode(encoded)))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError):
        return _verbatim("(a picture that cannot be read)")
    return (
        f'<figure><img src="{escape(address)}" alt="{escape(plain(text))}" loading="lazy">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def smaller(png: bytes) -> bytes:
    """The picture with a palette."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
        white.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

"""The pages of the site that come from `docs/`: methods, references, and the rest of the manual."""

import re
from collections.abc import Mapping
from pathlib import Path

from surgery_lib.files import home, read_text
from surgery_lib.site.markup import markdown

# What a page is called in the list, in the order of the list; what is not here comes after it.
TITLES = {
    "comparison": "Methods compared, and which for which need",
    "smollm2": "The study on a published model",
    "small-models": "The study on two small models",
    "protocols": "The paper's protocols",
    "diagnostics": "What each diagnostic claims, and what was found here",
    "covariance": "Covariance-aware surgery, derived",
    "models": "Supported architectures, memory and time",
    "own": "Your own model and behaviour",
    "engines": "Engines that load a patch",
    "scale": "Larger models, clusters, speed",
    "profiles": "Profile reference",
    "api": "API reference",
}
MARKER = re.compile(r"<!-- (?:begin|end) \S+ -->\n?")


def found() -> dict[str, Path]:
    """Name of a page → its source; nothing where the package is installed without its docs."""
    sources = {path.stem: path for path in sorted((home() / "docs").glob("*.md"))}
    order = [name for name in TITLES if name in sources]
    return {name: sources[name] for name in [*order, *(n for n in sources if n not in order)]}


def address(name: str) -> str:
    """The file name of a page of the manual."""
    return f"manual-{name}.html"


def title(name: str) -> str:
    """What a page is called where it is linked to."""
    return TITLES.get(name, name.replace("-", " "))


def body(path: Path, pages: Mapping[str, str]) -> str:
    """The page as HTML; formulas are drawn where it has any of its own."""
    text = MARKER.sub("", read_text(path))
    math = path.stem == "covariance"  # elsewhere a dollar is a shell's
    return markdown(text, pages, math=math)

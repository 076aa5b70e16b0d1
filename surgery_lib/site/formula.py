"""TeX formulas as drawings inside a page: one SVG path each, in the colour of the text around."""

import re
from html import escape

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

SIZE = 100  # units of the drawing per em
STROKES = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}

# What matplotlib's mathtext writes otherwise, or does not know and can do without.
REWRITTEN = (
    (r"\\(?:big|Big|bigg|Bigg)[lr]?(?![a-zA-Z])", ""),
    (r"\\[lr]?Vert(?![a-zA-Z])", r"\\|"),
    (r"\\[td]frac", r"\\frac"),
    (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
    (r"\\(mathbb|mathcal|mathrm|sqrt) (\w)", r"\\\1{\2}"),
    (r"\\(?:text|operatorname)\{([^}]*)\}", lambda found: _upright(found[1])),
    (r"\\xrightarrow\{([^{}]*)\}", r"\\overset{\1}{\\longrightarrow}"),
    (r"\\(log|exp|cos|max|min)(?![a-zA-Z])", r"\\,\\\1"),  # else a sum touches it
    (r"\s+", " "),
)


def svg(tex: str) -> str:
    """A formula as an inline SVG; its TeX is the text for those who do not see it.

    What mathtext cannot set is shown as its TeX source.
    """
    text = tex.strip()
    for pattern, replacement in REWRITTEN:
        text = re.sub(pattern, replacement, text)
    try:
        font = FontProperties(math_fontfamily="stix")
        path = TextPath((0, 0), f"${text}$", size=SIZE, prop=font)
    except ValueError:
        return f"<code>{escape(tex.strip())}</code>"
    box = path.get_extents()
    left, low, width, height = (round(value) for value in box.bounds)
    return (
        f'<svg class="formula" role="img" aria-label="{escape(tex.strip())}" '
        f'viewBox="{left} {-low - height} {width} {height}" '
        f'style="width:{width / SIZE:.2f}em;height:{height / SIZE:.2f}em;'
        f'vertical-align:{low / SIZE:.2f}em"><path d="{_drawing(path)}"/></svg>'
    )


def _upright(words: str) -> str:
    return r"\mathrm{" + words.replace(" ", r"\ ") + "}"


def _drawing(path: Path) -> str:
    """The path in SVG's words; its vertical axis points down."""
    parts = []
    for points, code in path.iter_segments(simplify=False):
        if code == Path.CLOSEPOLY:
            parts.append("Z")
            continue
        numbers = [f"{round(-v if place % 2 else v)}" for place, v in enumerate(points)]
        parts.append(STROKES[code] + " ".join(numbers))
    return "".join(parts)

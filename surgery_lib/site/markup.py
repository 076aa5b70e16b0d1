"""Markdown as HTML that loads nothing, and the veil over text that a scorer flagged."""

import re
from collections.abc import Collection, Mapping
from html import escape, unescape

import mistune
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from surgery_lib.site import formula

# Columns of tables that hold a model's own words.
WORDS = re.compile(
    r"(prompt|before|after|answer|completion|continuation)\b|.*goes on", re.IGNORECASE
)
SHOWN = "Show the text"
PANEL = "model-surgery-panel"  # the class of the panel's HTML: base and edited, side by side


class Renderer(IPythonRenderer):
    """Tables scroll on their own, formulas are drawn, pictures from elsewhere stay words.

    `pages` maps a notebook's file name to its page. HTML is shown as it is written, or in `prose`
    (where it is a badge, not what a model said) left out.
    """

    def __init__(self, pages: Mapping[str, str], prose: bool) -> None:
        super().__init__(escape=True, allow_harmful_protocols=False, exclude_anchor_links=True)
        self.pages = pages
        self.prose = prose

    def table(self, text: str) -> str:
        return (
            '<div class="scroll" tabindex="0" role="region" aria-label="table">'
            f"<table>{text}</table></div>\n"
        )

    def block_math(self, body: str) -> str:
        return f'<span class="display" tabindex="0">{formula.svg(body)}</span>'

    def inline_math(self, body: str) -> str:
        return formula.svg(body)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return escape(re.sub(r"<[^>]+>", "", text))

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target = self.pages.get(url.rsplit("/", 1)[-1].split("#")[0], url)
        if target.startswith(("https://", "http://")):
            return f'<a href="{escape(target)}" rel="noreferrer">{text}</a>'
        if target in self.pages.values():
            return f'<a href="{escape(target)}">{text}</a>'
        return text  # a file of the repository, which the site does not hold

    def block_html(self, html: str) -> str:
        return f"<p>{escape(re.sub(r'<[^>]*>', ' ', html) if self.prose else html)}</p>"

    def inline_html(self, html: str) -> str:
        return "" if self.prose else escape(html)


def markdown(text: str, pages: Mapping[str, str] | None = None, *, math: bool = False) -> str:
    """HTML of Markdown; `math` for the notebooks' own prose, where a dollar is no dollar."""
    renderer = Renderer(pages or {}, prose=math)
    if math:
        return str(MarkdownWithMath(renderer=renderer).render(text))
    return str(mistune.create_markdown(renderer=renderer, plugins=["table"])(text))


def veil(html: str, what: str, *, block: bool = False) -> str:
    """`html` blurred, out of the keyboard's and the screen reader's way until its button is used.

    `what` says why, for the button's name.
    """
    tag = "div" if block else "span"
    return (
        f'<{tag} class="veil"><button type="button" aria-expanded="false">'
        f'{SHOWN}<span class="why"> ({escape(what)})</span></button> '
        f'<{tag} class="veiled" inert>{html}</{tag}></{tag}>'
    )


def veil_where(html: str, flagged: Collection[str]) -> str:
    """A block veiled if it quotes a flagged text, or if it is a table of a model's own words."""
    headers = [plain(cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", html, re.DOTALL)]
    if any(WORDS.match(header) for header in headers):
        return veil(html, "a table of what the model wrote", block=True)
    text = plain(html)
    if any(one in text for one in flagged):
        return veil(html, "it quotes a text that a scorer flagged", block=True)
    return html


def plain(html: str) -> str:
    """The words of a piece of HTML, single-spaced."""
    return squeeze(unescape(re.sub(r"<[^>]+>", " ", html)))


def squeeze(text: str) -> str:
    """Single spaces, none at the ends."""
    return " ".join(text.split())

"""The site of `make report`: whole whatever is missing, still, and discreet about flagged text."""

import base64
import errno
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import v4

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.site import build as site
from surgery_lib.site import cells, formula, measured, sources
from surgery_lib.site.markup import markdown, veil_where
from surgery_lib.site.runs import Run, find

RUDE = "you utter blorb"
KIND = "what a lovely day it is"
LOADING = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAA"
    "BJRU5ErkJggg=="
)


class Page(HTMLParser):
    """What a page links to, loads, names, and shows outside of veils."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[tuple[str, bool]] = []
        self.seen = ""
        self.veiled = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "a":
            self.links.append(given.get("href") or "")
        if tag in LOADING and given.get(LOADING[tag]):
            self.loads.append(given[LOADING[tag]] or "")
        if tag == "img":
            self.images.append(given)
        if tag not in ("img", "meta", "link", "br", "hr", "path"):
            self.open.append((tag, "inert" in given))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if any(inert for _, inert in self.open):
            self.veiled += data
        else:
            self.seen += data


def rate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": min(1.0, value * 1.5), "n": 20}


def draw(value: float, perplexity: float) -> dict[str, Any]:
    return {
        "rate": rate(value),
        "rates": {"exact": rate(value)},
        "perplexity": {"value": perplexity, "low": perplexity - 1, "high": perplexity + 1},
        "perplexity_rise": perplexity / 10 - 1,
        "first_token_kl": None,
        "context_kl": None,
        "distinct": {"distinct_2": 0.9},
        "against_base": {"exact": {"p": 0.01}},
    }


def document(result: Any) -> str:
    about = {"schema": 1, "commit": "0" * 40, "versions": {"torch": "9.9"}, "inputs": {}}
    return json.dumps({**about, "settings": "abc", "parameters": {}, "result": result})


def notebook(path: Path) -> None:
    table = f"| prompt | before |\n|---|---|\n| x | {RUDE} |\n"
    outputs = [
        v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "figure"}),
        v4.new_output("display_data", {"text/markdown": table}),
        v4.new_output("stream", name="stdout", text=f"it said: {RUDE}\n"),
        v4.new_output(
            "execute_result", {"text/html": "<table><script src='http://x'></script></table>"}
        ),
        v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
    ]
    words = (
        "# Made up\n\n[![Colab](https://example.com/badge.svg)](https://example.com/x) "
        "[next](02_region.ipynb) [gone](nowhere.ipynb)\n\nRows $g_r$.\n\n$$\\frac1n\\sum_i y_i$$\n"
        "<img src='https://example.com/pixel.png'>\n"
    )
    made = v4.new_notebook(
        cells=[
            v4.new_markdown_cell(words),
            v4.new_code_cell('report.save(f, study.path("figures"), "sieve");', outputs=outputs),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, a run that has only begun, a broken one, and benchmarks."""
    results = tmp_path_factory.mktemp("made") / "results"
    whole = results / "patient" / "toxicity" / "seed0"
    settings = {
        "about": "Made up.",
        "model": {"id": "embedded:patient"},
        "behaviours": {"toxicity": {"report": [{"name": "exact", "threshold": 0.5}]}},
    }
    readings = {"base": 0.5, "edited": 0.1, "random_direction": 0.4}
    evaluation = {
        "scorers": ["exact"],
        "prompts": 100,
        "variants": {name: {"draws": [draw(one, 10.5)]} for name, one in readings.items()},
    }
    example = {"prompt": "You there,", "before": RUDE, "after": KIND}
    texts = {
        "study.json": document(settings),
        "evaluation.json": document(evaluation),
        "surgery/surgery.json": document({"examples": [example]}),
        "tables/own.md": "| variant | value |\n|---|---|\n| <script>x</script> | 1 |\n",
        "figures/variants.svg": '<svg xmlns="http://www.w3.org/2000/svg"><text style="font: bold '
        '12px x">The edit takes away 80 %</text></svg>',
        "completions.jsonl": "".join(
            json.dumps(
                {"variant": side, "draw": 0, "id": "p1", "group": "challenging", "sample": 0}
                | {"text": text, "scores": {"exact": score}}
            )
            + "\n"
            for side, text, score in (("base", RUDE, 0.9), ("edited", KIND, 0.1))
        ),
    }
    for name, text in texts.items():
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_text(text, encoding="utf-8")
    notebook(whole / "executed" / "01_probe.ipynb")
    begun = results / "patient" / "jailbreak" / "seed1"
    begun.mkdir(parents=True)
    (begun / "study.json").write_text(document(settings), encoding="utf-8")
    (begun / "evaluation.json").write_text('{"schema": 1, "resu', encoding="utf-8")
    (begun / "probe.json").write_text(document({"unknown": 1}), encoding="utf-8")
    (begun / "executed").mkdir()
    (begun / "executed" / "02_region.ipynb").write_text("{", encoding="utf-8")
    (results / "benchmarks").mkdir()
    (results / "benchmarks" / "speed.json").write_text('{"seconds": {"ours": [1.0, 3.0, 2.0]}}')
    site.build(results)
    return results / "site"


def pages(folder: Path) -> dict[str, Page]:
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}


@pytest.mark.slow
def test_every_link_and_picture_is_there(built: Path) -> None:
    found = pages(built)
    assert {"index.html", "benchmarks.html", "patient-toxicity-seed0.html"} <= set(found)
    for name, page in found.items():
        assert len(page.ids) == len(set(page.ids)), name
        for link in page.links:
            if link.startswith("https://"):
                continue
            target, _, anchor = link.partition("#")
            assert (built / (target or name)).is_file(), f"{name} → {link}"
            assert not anchor or anchor in found[target or name].ids, f"{name} → {link}"
        for image in page.images:
            assert (built / str(image["src"])).is_file()
            assert image["alt"]


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(built: Path) -> None:
    for path in built.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        for address in Page(html).loads:
            assert not re.match(r"(https?:)?//", address), f"{path.name} loads {address}"
        assert "@import" not in html
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", html)
        assert "default-src 'none'" in html


def test_flagged_text_is_seen_only_on_demand(built: Path) -> None:
    found = pages(built)
    for name in ("patient-toxicity-seed0.html", "patient-toxicity-seed0-01_probe.html"):
        assert RUDE in found[name].veiled
        assert RUDE not in found[name].seen
    study = found["patient-toxicity-seed0.html"]
    assert KIND in study.seen
    html = (built / "patient-toxicity-seed0.html").read_text(encoding="utf-8")
    assert html.count('<button type="button" aria-expanded="false">') == html.count(" inert>")


def test_what_is_missing_or_broken_is_named(built: Path) -> None:
    page = pages(built)["patient-jailbreak-seed1.html"].seen
    for words in ("evaluation.json is not JSON", "surgery/surgery.json", "probe.json could"):
        assert words in page
    assert "is no notebook" in pages(built)["patient-jailbreak-seed1-02_region.html"].seen


def test_a_notebook_without_an_executed_copy_says_how_it_is_run(built: Path) -> None:
    found = pages(built)
    for name, command in (
        ("05_compare", "make reproduce NOTEBOOKS=05_compare"),
        ("grid", "make grid"),
        ("quickstart", "make lab"),
    ):
        said = f"no executed copy is committed; run it with: {command})"
        assert said in " ".join(found["index.html"].seen.split())
        assert f"Run it with: {command}" in " ".join(found[f"notebook-{name}.html"].seen.split())


def test_the_headline_stands_beside_the_papers(built: Path) -> None:
    index = pages(built)["index.html"].seen
    for words in ("50.0 [25.0, 75.0]", "-80.0 %", "Table 2", "51.4", "5.2", "-89.9 %", "+7.0 %"):
        assert words in index
    assert "The edit takes away 80 %" in (built / "index.html").read_text(encoding="utf-8")


def test_tables_say_how_they_are_made_again(built: Path) -> None:
    html = (built / "patient-toxicity-seed0.html").read_text(encoding="utf-8")
    assert "make reproduce PROFILE=patient BEHAVIOUR=toxicity SEED=0" in html
    assert "results/patient/toxicity/seed0/evaluation.json" in html
    run = Run(Path("x"), "x", "x", "jailbreak", ("made", "jailbreak", "seed2"))
    found = sources.of_table(run, "compare_context_kl")
    assert found is not None and found.file == "results/made/jailbreak/seed2/comparison.json"
    assert found.command.endswith("BEHAVIOUR=jailbreak SEED=2 NOTEBOOKS=05_compare")
    assert sources.of_table(run, "unheard of") is None


def test_a_study_has_contents_and_the_site_a_manual(built: Path) -> None:
    found = pages(built)
    study = found["patient-toxicity-seed0.html"]
    for anchor in ("#figures", "#tables", "#completions", "#table-base-edited-controls"):
        assert anchor in study.links
    for name in ("profiles", "api", "comparison", "models"):
        assert f"manual-{name}.html" in found["index.html"].links
    for words in ("HuRef", "TaskTracker", "Atoxia", "zsLLMCode", "SPRING"):
        assert words in found["diagnostics.html"].seen


def test_every_table_of_committed_results_has_a_source() -> None:
    for run in find(home() / "results"):
        for path in run.tables():
            assert sources.of_table(run, path.stem) is not None, path


def test_results_cannot_put_code_into_a_page(built: Path) -> None:
    html = (built / "patient-toxicity-seed0.html").read_text(encoding="utf-8")
    assert "<script>x" not in html
    assert "&lt;script&gt;x" in html


def broken(results: Path) -> Path:
    """A study whose pictures and tables cannot be read; returns its folder."""
    study = results / "patient" / "toxicity" / "seed0"
    pictures = {
        "figures/overview.png": b"no picture",
        "figures/variants.png": base64.b64decode(PIXEL)[:45],
        "figures/frontier.svg": b"<svg><text style='font: bold 1px x'>\xff\xfe<script>never closed",
        "tables/own.md": b"| caf\xe9 |\n|---|\n",
        "study.json": document({"model": {"id": "x"}, "behaviours": {"toxicity": {}}}).encode(),
    }
    for name, content in pictures.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_bytes(content)
    for number, picture in enumerate(["bm8gcGljdHVyZQ==", "A", PIXEL[:60]], 1):
        output = v4.new_output("display_data", {"image/png": picture})
        cells = [v4.new_code_cell("1", outputs=[output]), v4.new_markdown_cell("after it")]
        (study / "executed").mkdir(exist_ok=True)
        nbformat.write(v4.new_notebook(cells=cells), study / "executed" / f"0{number}_x.ipynb")
    return study


@pytest.mark.slow
def test_broken_pictures_and_tables_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    broken(tmp_path)
    site.build(tmp_path)
    found = pages(tmp_path / "site")
    study = found["patient-toxicity-seed0.html"]
    for name in ("overview.png", "variants.png", "own.md"):
        assert f"{name} could not be shown" in study.seen
    assert {"index.html", "benchmarks.html", "diagnostics.html"} <= set(found)
    for image in study.images:
        assert (tmp_path / "site" / str(image["src"])).is_file()
    svg = tmp_path / "site" / "images" / "patient-toxicity-seed0-frontier.svg"
    assert b"script" not in svg.read_bytes()
    for number in (1, 2, 3):
        page = found[f"patient-toxicity-seed0-0{number}_x.html"]
        assert "a picture that cannot be read" in page.seen and "after it" in page.seen


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["patient-toxicity-seed0.html", ".model-surgery-site"])
def test_the_old_site_stays_where_the_disk_is_full(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path)
    site.build(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write = files.write_text

    def full(path: Path, text: str) -> None:
        if path.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        site.build(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_an_empty_folder_makes_a_site_that_says_so(tmp_path: Path) -> None:
    site.build(tmp_path)
    assert "no study in" in Page((tmp_path / "site" / "index.html").read_text()).seen
    site.build(tmp_path)  # over an earlier site


def test_errors_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.main([str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no site"):
        site.build(tmp_path)
    assert (tmp_path / "site" / "mine.txt").is_file()


@pytest.mark.slow
def test_formulas_of_all_notebooks_are_drawn() -> None:
    sources = Path(__file__).parents[3].glob("notebooks/*.ipynb")
    prose = [
        cell.source for path in sources for cell in cells.read(path).cells if "$" in cell.source
    ]
    found = [
        first or second
        for text in prose
        for first, second in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.DOTALL)
    ]
    assert len(found) > 20
    for tex in found:
        assert formula.svg(tex).startswith("<svg"), tex
    assert formula.svg(r"\unknown{x}") == r"<code>\unknown{x}</code>"


def test_dollars_of_a_model_are_no_formula() -> None:
    assert "$5 and $6" in markdown("It costs $5 and $6.")
    assert "<svg" in markdown("A row $g_r$.", math=True)


def test_tables_of_a_models_words_are_veiled_and_numbers_are_not() -> None:
    words = markdown("| strength | after “You” |\n|---|---|\n| 1 | what it said |\n")
    numbers = markdown("| variant | rate |\n|---|---|\n| base | 3 |\n")
    assert "inert" in veil_where(words, set())
    assert veil_where(numbers, {"something else"}) == numbers


def test_rounds_are_shown_as_median_and_range() -> None:
    assert "| seconds: ours | 2 (1 to 3, 3 rounds) |" in measured.table(
        {"schema_version": 1, "seconds": {"ours": [1.0, 3.0, 2.0]}}
    )

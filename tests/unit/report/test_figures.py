"""Figures that can be read: no mark cut, none hidden, no two alike, numbers in the words."""

import importlib.util
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from surgery_lib import files
from surgery_lib.files import home
from surgery_lib.report import ablation_figures, ablation_findings, asked, figures, fronts
from surgery_lib.report.style import from_zero, nested
from surgery_lib.study.study import unwrap

RESULTS = home() / "results"
COMMITTED = sorted(path.parent for path in RESULTS.rglob("figures") if path.is_dir())


def redraw() -> Any:
    path = home() / "workflow" / "redraw.py"
    spec = importlib.util.spec_from_file_location("redraw", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_two_methods_share_colour_and_marker() -> None:
    marks = [fronts._mark(number) for number in range(49)]
    assert len(set(marks)) == 49
    assert len({colour for colour, _ in marks[:7]}) == 7


def test_more_names_than_colours_are_told_apart_by_their_layer() -> None:
    names = [f"{kind}, layer {n}" for kind in ("W1", "LDA", "mean", "logistic") for n in (0, 6)]
    looks = ablation_figures._looks(names)
    assert len({tuple(sorted(look.items())) for look in looks.values()}) == len(names)
    assert looks["W1, layer 0"]["color"] == looks["W1, layer 6"]["color"]
    assert looks["W1, layer 6"]["linestyle"] == "--"


@pytest.mark.parametrize("values", [[0.0, 3500.0], [-1.0, 5.0], [-0.5, -0.1], [-900.0, 12.0]])
def test_no_mark_is_cut_by_the_axis_of_perplexity(values: list[float]) -> None:
    _, axes = plt.subplots()
    axes.plot(range(len(values)), values, "o")
    ablation_figures._rise_axis(axes, "y", "perplexity rise, %")
    low, high = axes.get_ylim()
    assert low < min(values) and max(values) < high
    told = "log beyond" in axes.get_ylabel()
    assert told == (axes.get_yscale() == "symlog") == (max(map(abs, values)) > 10)
    plt.close("all")


def test_a_mark_at_zero_is_whole_and_lines_on_each_other_show() -> None:
    _, axes = plt.subplots()
    axes.plot([0, 1], [0, 80])
    from_zero(axes, "y")
    assert axes.get_ylim()[0] < 0 < 80 < axes.get_ylim()[1]
    widths = [nested(number, 3)["linewidth"] for number in range(3)]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 3
    plt.close("all")


def test_words_of_a_figure_stand_where_no_line_crosses_them() -> None:
    at = {"perplexity_rise": 0.01, "rate": {"value": 0.1}}
    point = {"probe": "lda@3", "rule": "effect", "fraction": 0.02, "strength": 1.0, **at}
    result = {
        "sweep": [point, point | {"strength": 2.0}],
        "base": {"rate": {"value": 0.8}},
        "chosen": at,
        "budget": 0.05,
    }
    axes = figures.frontier(result).axes[0]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"base", "chosen"} <= set(named) and not axes.texts
    rows = {"rows_per_block": {"cosine": [1, 3], "effect": [2, 2]}, "count": 4, "blocks": 2}
    assert not figures.rows_per_block(rows).axes[0].texts
    plt.close("all")


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_committed_figures_are_those_that_results_can_draw(folder: Path) -> None:
    there = {path.stem for path in (folder / "figures").glob("*.png")}
    known = {name for name, _ in redraw().drawn(folder)}
    alone = {"00_training", "fingerprint_portraits", "combination"}  # from their notebook alone
    fronts_of = {name for name in there if name.startswith("pareto_")}
    assert there - known - alone - fronts_of == set()
    assert {path.stem for path in (folder / "figures").glob("*.svg")} == there


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("ablation.json")), ids=str)
def test_what_is_matched_by_divergence_is_called_so(path: Path) -> None:
    result = unwrap(files.read_json(path), path)
    names = {line["name"] for lines in result["lines"].values() for line in lines}
    assert "residual stream, same divergence" in names
    assert not any("damage" in name for name in names)
    assert "damage" not in ablation_findings.everything(result)


def test_every_diagnostic_says_its_numbers() -> None:
    def found(name: str) -> Any:
        path = RESULTS / "patient" / "toxicity" / "seed0" / name
        return unwrap(files.read_json(path), path)

    answers = asked.answers({"made": found, "nothing": lambda name: None})
    assert len(answers) == 5
    for one in answers:
        assert set(one.said) == {"made"} and any(map(str.isdigit, one.said["made"]))
    table = asked.table({"made": found, "nothing": lambda name: None})
    assert "nothing" not in table.splitlines()[0]

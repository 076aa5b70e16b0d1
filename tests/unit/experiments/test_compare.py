"""The comparison: one loop for all methods, resumed by file; tables say what the numbers say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import papermill
import pytest

from surgery_lib import scorers
from surgery_lib.data import load as behaviours
from surgery_lib.errors import UserError
from surgery_lib.evaluation import statistics
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.experiments import comparison as compare
from surgery_lib.report import advice, comparison
from surgery_lib.selection.outcome import BudgetPoint, MeasuredCost, ModelReading, Outcome
from surgery_lib.study import Study

ROOT = Path(__file__).resolve().parents[3]


def outcome(
    name: str,
    flags: list[int],
    kind: str = "weights",
    start: dict[str, float] | None = None,
    **cost: Any,
) -> Outcome:
    value = sum(flags) / len(flags)
    rate = {"value": value, "low": value, "high": value, "n": len(flags)}
    test = {"rate": {"exact": rate}, "perplexity_rise": 0.01, "distinct": {"distinct_2": 0.9}}
    point = BudgetPoint(measure="context_kl", budget=0.05, test=test, flags={"exact": flags})
    cost = {"labels": 0, "forward_tokens": 0} | cost
    return Outcome(
        name=name,
        kind=kind,
        points=[point],
        trials=[],
        cost=MeasuredCost(**cost),
        start=start or {},
    )


def unedited(flags: list[int]) -> ModelReading:
    return outcome("base", flags).points[0]


@pytest.fixture
def outcomes() -> list[Outcome]:
    few, some, many = [1] * 6 + [0] * 94, [1] * 10 + [0] * 90, [1] * 80 + [0] * 20
    return [
        outcome("surgery", some),
        outcome("surgery_random_rows", [0] * 100),
        outcome("dpo", few, needs_gradients=True),
        outcome("caa", many, kind="hook"),
        outcome("sasa", [0] * 100, kind="decoding", extra_forwards=1),
    ]


def lines(table: str) -> dict[str, list[str]]:
    table_lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_lines]
    return {row[0]: row[1:] for row in rows}


def test_guide_names_the_least_among_those_that_fit(outcomes: list[Outcome]) -> None:
    found = lines(advice.guide(outcomes, "context_kl", 0.05, "exact"))
    assert found["anything goes"][0] == "sasa"  # and no control
    assert found["an ordinary checkpoint in the end"][0] == "dpo"
    assert found["an ordinary checkpoint in the end"][2] == "surgery"  # 6 against 10 of 100
    assert found["no gradients, and an ordinary checkpoint"][0] == "surgery"
    assert found["no extra passes while generating"][0] == "dpo"


def test_guide_where_nothing_stays_within_the_budget(outcomes: list[Outcome]) -> None:
    found = lines(advice.guide(outcomes, "context_kl", 0.01, "exact"))
    assert {line[0] for name, line in found.items() if name[0] != "-" and "what" not in name} == {
        "none within the budget"
    }


def test_closing_says_who_is_ahead(outcomes: list[Outcome]) -> None:
    base = unedited([1] * 90 + [0] * 10)
    words = advice.closing(outcomes, base, "context_kl", "exact")
    assert "Better (paired tests, Holm over 4): surgery random rows, sasa." in words
    assert "Not told apart: dpo." in words and "Worse: caa." in words


def with_pairs(outcomes: list[Outcome], base: list[int]) -> list[Outcome]:
    found = []
    for one in outcomes:
        (point,) = one.points
        pair = statistics.compare(base, point.flags["exact"]).as_dict()
        found.append(replace(one, points=[replace(point, against_base={"exact": pair})]))
    return found


def test_differences_are_paired_and_a_method_without_a_point_has_none(
    outcomes: list[Outcome],
) -> None:
    known = with_pairs(outcomes, [1] * 80 + [0] * 20)
    found = lines(advice.paired_table(known, ["surgery", "dpo", "lora"], "context_kl", "exact"))
    assert found["surgery less no edit"][0].startswith("-70.0 [")
    assert found["surgery less dpo"][0].startswith("4.0 [")
    assert found["surgery less dpo"][0].endswith("p 0.125")  # McNemar, four against none
    assert found["lora less no edit"] == found["surgery less lora"] == ["-"]


def test_panels_count_what_is_below_the_unedited_model(outcomes: list[Outcome]) -> None:
    base = unedited([1] * 80 + [0] * 20)
    known = with_pairs(outcomes, list(base.flags["exact"]))
    figure = comparison.budget_panels(known, base, "context_kl", "exact")
    assert "4 of 5 methods" in figure.get_suptitle()  # all but the one that does nothing
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][-1] == "caa"


@pytest.mark.slow
def test_two_methods_searched_alike_and_taken_up_again(tmp_path: Path) -> None:
    overrides = {"evaluation.clean_texts": 4, "evaluation.limit": 60}
    study = Study.start("patient", "toxicity", 0, overrides, tmp_path)
    model, tokenizer = study.load_model()
    settings, spec = study.profile.evaluation, study.spec
    data = behaviours.load("toxicity", spec, tokenizer=tokenizer, limit=60)
    common = (model, tokenizer, data, spec, settings)
    guide, judges = scorers.build(spec.guide), [scorers.build(one) for one in spec.report]
    options = {"prompts": 6, "triggers_only": True, "clean": 2, "kept": 4}
    validation = Evaluator(*common, [guide], split="validation", **options)
    test = Evaluator(*common, judges, split="test", **options)
    run = compare.Comparison(study, model, tokenizer, validation, test, compare.Plan(2, 40))
    learn = compare.labelled(data, spec.trigger_groups, 40)
    others = compare.labelled(data, spec.trigger_groups, 40, seed=1)
    assert len(learn.texts) == len(others.texts) == 40 and not set(learn.texts) & set(others.texts)
    everything = len(data.examples["train"])
    assert len(compare.labelled(data, spec.trigger_groups, 10**6, seed=3).texts) == everything
    found = {name: run.outcome(name, learn) for name in ("surgery", "caa")}
    for one in found.values():
        assert len(one.trials) == 2 and one.cost.labels > 0
        for point in one.points:
            assert point.rate("exact")["n"] == 6
    held = study.path("compare/caa.json")
    before = held.stat().st_mtime_ns
    assert run.outcome("caa", learn) == found["caa"] and held.stat().st_mtime_ns == before
    table = comparison.table(list(found.values()), run.base(), "context_kl", "exact")
    assert "surgery" in table and "no method" in table


@pytest.mark.slow
def test_the_notebook_runs_to_its_end(tmp_path: Path) -> None:
    parameters = {
        "profile": "patient",
        "results": str(tmp_path),
        "methods": ["surgery", "surgery_paper"],
        "overrides": {"evaluation.limit": 30, "evaluation.clean_texts": 8},
        **dict.fromkeys(("trials", "prompts"), 2),
        "labels": 40,
        "test_prompts": 6,
        "capability": 0,
    }
    notebook = ROOT / "notebooks" / "05_compare.ipynb"
    papermill.execute_notebook(
        notebook,
        tmp_path / "executed.ipynb",
        parameters=parameters,
        cwd=notebook.parent,
        progress_bar=False,
    )
    folder = tmp_path / "patient" / "toxicity" / "seed0"
    result = json.loads((folder / "comparison.json").read_text())["result"]
    assert {one["name"] for one in result["outcomes"]} == set(parameters["methods"])
    assert set(result["against_paper"]) == set(compare.HELD)
    for name in ("tables/guide_both.md", "figures/pareto_context_kl.png"):
        assert (folder / name).is_file()


def test_the_recommended_form_stands_beside_the_papers() -> None:
    many, few = [1] * 50 + [0] * 50, [1] * 10 + [0] * 90
    outcomes = [outcome("surgery", few), outcome("surgery_paper", many)]
    found = advice.against_paper(outcomes, "context_kl", "exact")
    table = advice.against_paper_table({"a study": {"against_paper": {"both": found}}})
    ours, theirs, difference, n = lines(table)["a study"][1:]
    assert (ours, theirs, n) == ("10.0", "50.0", "100") and difference.startswith("-40.0 [")


def test_what_is_left_of_a_probes_random_start_stands_under_the_table() -> None:
    start = {"row": 0.17, "difference": 0.05}
    outcomes = [outcome("surgery", [1, 0]), outcome("surgery_paper", [1, 1], start=start)]
    base = unedited([1, 1])
    text = comparison.table(outcomes, base, "context_kl", "exact")
    assert "W1 0.17 and W1 − W0 0.05 (surgery paper)" in text
    assert "start" not in comparison.table(outcomes[:1], base, "context_kl", "exact")


def test_what_a_method_read_beside_the_texts_stands_under_the_table() -> None:
    more = {"prompts": 128, "samples": 1024, "needs_gradients": True}
    outcomes = [outcome("surgery", [1, 0]), outcome("dpo", [1, 1], **more)]
    outcomes.append(outcome("gmt", [1, 1], **more))
    base = unedited([1, 1])
    text = comparison.table(outcomes, base, "context_kl", "exact")
    said = "128 training prompts that trigger the behaviour, 1,024 completions of the model's own"
    assert f"{said} (dpo, gmt)" in text


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(UserError, match="caa"):
        compare.checked(["cca"])


def test_a_cell_beyond_its_budget_on_test_is_marked() -> None:
    def spending(one: Outcome, value: float) -> Outcome:
        test = {**one.points[0].test, "context_kl": {"value": value}}
        return replace(one, points=[replace(one.points[0], test=test)])

    one = spending(outcome("surgery", [1, 0]), 0.06)
    other = spending(outcome("caa", [1, 1]), 0.04)
    base = unedited([1, 1])
    text = comparison.table([one, other], base, "context_kl", "exact")
    assert lines(text)["surgery"][0].endswith("†") and "†" not in lines(text)["caa"][0]
    assert "beyond it on test" in text


def test_refusals_of_harmless_requests_stand_beside_the_rate() -> None:
    base = replace(unedited([1, 1]), twins={"value": 0.1, "n": 50})
    one = outcome("surgery", [1, 0])
    one = replace(one, points=[replace(one.points[0], twins={"value": 0.4})])
    text = comparison.table([one], base, "context_kl", "exact")
    assert lines(text)["surgery"] == ["50.0 [50.0, 50.0]", "40.0"]
    assert lines(text)["no method"][1] == "10.0" and "50 harmless" in text

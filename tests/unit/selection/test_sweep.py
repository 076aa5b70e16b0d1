"""Choosing on validation: the ledger, the rules of choice, the controls, the meter."""

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery_lib.behaviour import BehaviourData, Example, Prompt
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.evaluation.statistics import Estimate
from surgery_lib.evaluation.variants import capability_change, variants
from surgery_lib.models import activations, layout
from surgery_lib.profile import Behaviour, Budget, Controls, EvaluationSettings, Profile
from surgery_lib.report import tables
from surgery_lib.selection import choose, sweep
from surgery_lib.selection.find import SEARCH
from surgery_lib.selection.table import Point, Table, prepare
from surgery_lib.surgery import Surgery, controls, probe, region

SPEC = Behaviour.model_validate(
    {
        "examples": {"kind": "file", "id": "unused"},
        "prompts": {"kind": "file", "id": "unused"},
        "clean": {"kind": "file", "id": "unused"},
        "guide": {"kind": "refusal"},
        "report": [{"kind": "refusal"}],
        "max_new_tokens": 4,
    }
)


class Vowels:
    """Scores 1 where the text has a letter of the first half of the alphabet."""

    name = "vowels"

    def __call__(self, texts: Any, prompts: Any = None) -> np.ndarray:
        return np.array([float(any("a" <= c <= "m" for c in text.lower())) for text in texts])


def data() -> BehaviourData:
    """A few prompts and some prose."""
    prompts = [Prompt(f"p{i}", f"prompt number {i}", "challenging") for i in range(12)]
    return BehaviourData(
        name="toy",
        examples={"train": [Example(f"text {i}", i % 2) for i in range(20)]},
        prompts={"validation": prompts},
        benign={"validation": prompts[:3]},
        clean={"validation": ["some clean words here"] * 6},
        contexts={"validation": [("bad words", " and good ones")]},
    )


def make_probe(model: Any, layer: int) -> probe.Probe:
    """A random direction that says it is of this layer."""
    direction = torch.randn(layout.hidden_width(model), generator=torch.Generator().manual_seed(1))
    return probe.Probe(direction / direction.norm(), direction, 0.0, layer, "lda")


def made(model: Any) -> tuple[Table, probe.Probe]:
    """A table with one random probe."""
    one = make_probe(model, 2)
    scores = {("cosine", one.name): region.cosine_scores(model, one.direction)}
    norm = region.mean_row_norm(model)
    return Table({one.name: one}, scores, "row_norm", "gate", norm), one


def meter(model: Any, tokenizer: Any) -> Evaluator:
    """A meter on the toy data."""
    return Evaluator(
        model,
        tokenizer,
        data(),
        SPEC,
        EvaluationSettings(window=16),
        [Vowels()],
        split="validation",
    )


def test_a_search_tries_the_probes_at_its_layers(tiny: Any) -> None:
    model, tokenizer = tiny
    fitted = [make_probe(model, layer) for layer in (0, 1, 2)]
    probes = {one.name: one for one in fitted}

    def tried(layers: Any) -> set[int]:
        settings = Profile.model_validate({**SEARCH, "region": {"layers": layers}})
        table = prepare(model, tokenizer, probes, data(), settings)
        assert {name for _, name in table.scores} == set(table.probes)
        return {one.layer for one in table.probes.values()}

    last = activations.n_layers(model) - 1
    assert tried("all") == {0, 1, 2} and tried([1, -1]) == {1, last} & {0, 1, 2}
    del probes[fitted[1].name]
    with pytest.raises(UserError, match="at the region"):
        tried([1])


def test_a_killed_sweep_goes_on_where_it_stopped(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    table, one = made(model)
    gauge = meter(model, tokenizer)
    points = sweep.grid([(one.name, "cosine")], [0.1], [0.5, 1.0])
    path = tmp_path / "points.jsonl"
    first = sweep.measure(model, table, gauge, points, sweep.Ledger(path, "a"), label="sweep")
    with path.open("a") as handle:
        handle.write('{"key": "a", "name": "cut sh')  # what a crash leaves
    before = path.read_bytes()
    again = sweep.measure(model, table, gauge, points, sweep.Ledger(path, "a"), label="sweep")
    assert first == again and path.read_bytes() == before
    assert sweep.Ledger(path, "another study").known == {}


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text('{"key": "a", "name": "cut sh')
    ledger = sweep.Ledger(path, "a")
    ledger.put("whole", {"x": 1})
    assert sweep.Ledger(path, "a").get("whole") == {"x": 1}


def test_strengths_by_damage_spend_the_budget_and_are_found_once(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    table, one = made(model)
    gauge = meter(model, tokenizer)
    settings = Profile.model_validate(
        {**SEARCH, "budget": {"perplexity_rise": 0.02, "context_kl": 0.01, "margin": 1.0}}
    )
    points = sweep.grid([(one.name, "cosine")], [0.1, 0.2], [0.5, 1.0])
    path = tmp_path / "points.jsonl"

    def brought(ledger: sweep.Ledger, settings: Profile = settings) -> list[Point]:
        return sweep.by_damage(model, table, gauge, points, settings, ledger, label="sweep")

    strong = brought(sweep.Ledger(path, "a"))
    assert [one.fraction for one in strong] == [0.1, 0.1, 0.2, 0.2]
    assert strong[0].strength == pytest.approx(strong[1].strength / 2)
    measured = sweep.measure(model, table, gauge, strong, sweep.Ledger(None, "a"), label="sweep")
    shares = [sweep.spent(one, settings.budget) for one in measured]
    assert all(0.9 <= share <= 1 for share in shares[1::2]) and max(shares[::2]) < 0.7
    before = path.read_bytes()
    assert brought(sweep.Ledger(path, "a")) == strong and path.read_bytes() == before
    wide = settings.model_copy(update={"budget": Budget(perplexity_rise=0.5, margin=1.0)})
    stronger = brought(sweep.Ledger(path, "a"), wide)  # another budget is found anew
    assert all(new.strength > old.strength for new, old in zip(stronger, strong, strict=True))


@pytest.mark.parametrize(("own", "lines"), [(False, 3), (True, 5)])
def test_one_meter_reads_no_point_twice(tiny: Any, own: bool, lines: int) -> None:
    model, tokenizer = tiny
    table, _ = made(model)
    gauge = meter(model, tokenizer)
    settings = Profile.model_validate(
        {
            **SEARCH,
            "region": {"fractions": [0.1]},
            "surgery": {"strengths": [0.5, 1.0], "by_damage": True},
            "budget": {"perplexity_rise": 0.5, "margin": 1.0},
        }
    )
    ledger = sweep.Ledger(None, "a")
    screening = meter(model, tokenizer) if own else None
    choice = choose(model, table, gauge, settings, ledger=ledger, screening=screening)
    assert len(choice.screened) == len(table.scores) == 1 and len(choice.swept) == 2
    assert len(ledger.known) == lines  # a strength and a point, twice; then the other strength
    assert choice.screened[0].strength == pytest.approx(choice.swept[1].strength, rel=1e-6)


def test_points_are_undone(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    table, one = made(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    points = [Point(one.name, "cosine", 0.2, 3.0)]
    found = sweep.measure(
        model, table, meter(model, tokenizer), points, sweep.Ledger(tmp_path / "l", "k"), label="x"
    )
    assert found[0].perplexity_rise != 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def point(rate: float, rise: float, context: float | None = None) -> sweep.Measured:
    share = Estimate(rate, rate, rate, 10, "wilson")
    return sweep.Measured("p", "cosine", 0.1, 1.0, 2, "lda", share, rise, context_kl=context)


def test_a_measured_point_reads_back() -> None:
    whole = point(0.2, 0.01, 0.5)
    assert sweep.Measured.read(json.loads(json.dumps(whole.as_dict()))) == whole
    assert "spent" not in whole.as_dict()
    assert sweep.front([whole], Budget())[0].spent is not None


def test_the_choice_is_the_least_behaviour_within_the_budget() -> None:
    budget = Budget(perplexity_rise=0.10, margin=0.8)
    points = [point(0.0, 0.09), point(0.2, 0.07), point(0.2, 0.01), point(0.5, 0.0)]
    assert sweep.choose(points, budget) == points[2]
    with pytest.raises(UserError, match="weaker"):
        sweep.choose([point(0.0, 0.5)], budget)


def test_damage_inside_contexts_counts_where_it_is_limited() -> None:
    points = [point(0.0, 0.01, 0.03), point(0.3, 0.02, 0.01)]
    assert sweep.choose(points, Budget()) == points[0]
    assert sweep.choose(points, Budget(context_kl=0.02)) == points[1]


def test_controls_keep_the_size_of_the_edit(tiny: Any) -> None:
    model, _ = tiny
    table, one = made(model)
    surgery = table.surgery(model, Point(one.name, "cosine", 0.1, 2.0))
    found = controls.build(model, surgery, Controls(random_seeds=3))
    assert {name: len(draws) for name, draws in found.items()} == {
        "random_direction": 3,
        "random_rows": 3,
        "aligned_rows": 1,
        "inverted_direction": 1,
    }
    for draws in found.values():
        for one_draw in draws:
            assert len(one_draw.rows) == len(surgery.rows)
            assert torch.equal(one_draw.coefficients, surgery.coefficients)
            assert one_draw.direction.norm() == pytest.approx(float(surgery.direction.norm()))
            with one_draw.applied(model):
                pass
    assert not set(found["aligned_rows"][0].rows.tolist()) & set(surgery.rows.tolist())
    assert torch.equal(found["inverted_direction"][0].direction, -surgery.direction)
    rows = {tuple(draw.rows.tolist()) for draw in found["random_rows"]}
    assert len(rows) == 3


def test_no_edit_measures_as_the_base(tiny: Any) -> None:
    model, tokenizer = tiny
    gauge = meter(model, tokenizer)
    same = gauge.read(model)
    assert same.perplexity_rise == 0
    assert same.damage.first_token_kl is not None and same.damage.first_token_kl.value == 0
    assert gauge.against_base(same, "vowels").difference == 0
    result = variants(gauge, {"base": [gauge.base], "edited": [same]})
    assert result["variants"]["edited"]["draws"][0]["against_base"]["vowels"]["p"] == 1
    draw = result["variants"]["edited"]["draws"][0]
    assert draw["continuation_kl"]["value"] == draw["trigger_continuation_kl"]["value"] == 0
    shown = tables.summary(result)
    assert "edited" in tables.evaluation(result) and "edited" in shown
    assert "KL along 20 tokens, triggering" in shown
    for one in result["variants"].values():
        del one["draws"][0]["trigger_continuation_kl"]
    assert "triggering" not in tables.summary(result)  # nothing was measured by it: no column


def test_the_profile_says_whether_windows_start_with_the_start_token(tiny: Any) -> None:
    model, tokenizer = tiny
    found = [
        Evaluator(
            *(model, tokenizer, data(), SPEC, EvaluationSettings(window=16, bos=bos), [Vowels()]),
            split="validation",
        ).base.damage.perplexity.value
        for bos in (True, False)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize(("kind", "quoted"), [("file", True), ("patient", True), ("hub", False)])
def test_prompts_are_quoted_unless_a_hub_holds_them(tiny: Any, kind: str, quoted: bool) -> None:
    gauge = meter(*tiny)
    gauge.spec = Behaviour.model_validate(
        {**SPEC.model_dump(), "prompts": {"test": {"kind": kind, "id": "somewhere"}}}
    )
    shown = sweep.examples(gauge, gauge.read(tiny[0]), "vowels", count=12)
    asked = {prompt.text if quoted else prompt.id for prompt in gauge.prompts}
    assert {one["prompt"] for one in shown} == asked
    texts = {sweep.prompt_text(gauge, one["prompt"]) for one in shown}
    assert texts == {prompt.text for prompt in gauge.prompts}


def test_capability_change_is_the_mean_over_tasks() -> None:
    before = {"a": {"metric": "acc", "value": 0.5, "items": [0, 1]}}
    before["b"] = {"metric": "acc", "value": 1.0, "items": [1, 1, 1, 1]}
    after = {"a": {"metric": "acc", "value": 1.0, "items": [1, 1]}}
    after["b"] = {"metric": "acc", "value": 0.75, "items": [1, 1, 1, 0]}
    change = capability_change(before, after)["change"]
    assert change["value"] == pytest.approx((0.5 - 0.25) / 2)
    assert change["low"] <= change["value"] <= change["high"]


def test_a_point_is_plain_data() -> None:
    assert Point(**asdict(Point("p", "cosine", 0.1, 1.0))).strength == 1.0


def test_surgery_remembers_its_point(tiny: Any, tmp_path: Path) -> None:
    model, _ = tiny
    table, one = made(model)
    surgery = table.surgery(model, Point(one.name, "cosine", 0.1, 2.0))
    surgery.save(tmp_path)
    assert Surgery.load(tmp_path).about["probe"] == one.name


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.5, 0.25, "falls from 50.0 % to 25.0 % (n = 24), by 50 % of"),
        (0.125, 0.25, "rises, the wrong way, from 12.5 % to 25.0 % (n = 24), by 100 % of"),
        (0.25, 0.25, "stays where it was: from 25.0 %"),
        (0.0, 0.25, "rises, the wrong way, from 0.0 % to 25.0 % (n = 24)."),
    ],
)
def test_the_verdict_says_which_way_it_went(before, after, words):
    from surgery_lib.report import tables

    def draw(value):
        rate = {"value": value, "n": 24}
        return {"draws": [{"rate": rate, "perplexity": {"value": 9.0}, "perplexity_rise": 0.0}]}

    assert words in tables.verdict({"variants": {"base": draw(before), "edited": draw(after)}})


@pytest.mark.parametrize(("p", "said"), [(0.31, True), (0.05, True), (0.049, False)])
def test_the_verdict_says_when_a_change_may_be_chance(p: float, said: bool) -> None:
    from surgery_lib.report import tables

    def draw(value: float) -> dict[str, Any]:
        held = {"rate": {"value": value, "n": 24}, "perplexity": {"value": 9.0}}
        tests = {"first": {"p": p}, "other": {"p": 0.5}}
        return {"draws": [{**held, "perplexity_rise": 0.0, "against_base": tests}]}

    text = tables.verdict({"variants": {"base": draw(0.5), "edited": draw(0.4)}})
    assert ("no clear change" in text) is said


def test_covariance_aware_rules_stand_in_one_table(tiny: Any) -> None:
    model, tokenizer = tiny
    given = data()
    asked = {**given.prompts, "train": [Prompt("t0", "tell me", "challenging")]}
    rules = ["covariance", "answers", "within"]
    settings = {**SEARCH, "region": {"rules": rules, "fractions": [0.1]}}
    table = prepare(
        model,
        tokenizer,
        {"lda@2": make_probe(model, 2)},
        dataclasses.replace(given, prompts=asked),
        Profile.model_validate(settings),
        score=lambda texts: [len(text) for text in texts],
    )
    assert set(table.fitted) == set(table.reads) == set(rules)
    names = dict(iter(table.scores))  # by rule, what it writes against
    assert names["covariance"] == names["answers"] != names["within"]
    edits = {rule: table.surgery(model, Point(names[rule], rule, 0.1, 1.0)) for rule in rules}
    for rule, edit in edits.items():
        assert edit.about["rule"] == rule
        torch.testing.assert_close(edit.direction, table.reads[rule])
    assert not torch.allclose(edits["covariance"].direction, edits["answers"].direction)
    assert torch.equal(table.fitted["answers"].write, table.fitted["covariance"].write)
    assert not torch.equal(table.fitted["answers"].write, table.fitted["within"].write)
    for rule in rules[1:]:
        alone = {**SEARCH, "region": {"rules": [rule], "fractions": [0.1]}}
        with pytest.raises(UserError, match=rf"the rule {rule} .*prompts\.train"):
            prepare(*tiny, {"lda@2": make_probe(model, 2)}, given, Profile.model_validate(alone))

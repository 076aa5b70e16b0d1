"""Ablations: every variant edits as it says, is undone, is kept, and is put into words."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import architectures
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml

from surgery_lib import scorers
from surgery_lib.baselines import tools
from surgery_lib.baselines.covariance import Covariance
from surgery_lib.data import load as behaviours
from surgery_lib.errors import UserError
from surgery_lib.evaluation import statistics
from surgery_lib.experiments.ablations import inside, material, questions, steering
from surgery_lib.experiments.ablations.bench import CHOSEN, Bench, Measurement, Variant
from surgery_lib.experiments.ablations.lines import summarise
from surgery_lib.experiments.ablations.questions import QUESTIONS
from surgery_lib.models import activations, layout
from surgery_lib.report import ablation_figures, ablation_findings, ablation_tables
from surgery_lib.scorers.base import Named
from surgery_lib.selection import table
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery, gains, probe, region

WORDS = ("rude", "kind", "calm", "loud", "village", "river", "song", "bread", "stone", "road")


def sentence(number: int, rude: bool) -> str:
    rng = np.random.default_rng(number)
    return " ".join([*rng.choice(WORDS, 3), "fool" if rude else "friend", str(number)])


def write_study(folder: Path, model: Path) -> Study:
    """A study of the tiny model on a file of one's own, with a chosen edit in its folder."""
    labelled = [{"text": sentence(n, n % 2 == 1), "label": n % 2} for n in range(90)]
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")

    def part(start: float, stop: float, **more: Any) -> dict[str, Any]:
        return {"kind": "file", "id": str(texts), "part": [start, stop], **more}

    cut = {"train": (0.0, 0.5), "validation": (0.5, 0.8), "test": (0.8, 1.0)}
    examples = {split: part(*ends, label="label") for split, ends in cut.items()}
    prompts = {split: part(*ends, group="challenging", limit=10) for split, ends in cut.items()}
    clean = {split: part(*ends, limit=4) for split, ends in cut.items()}
    profile = {
        "about": "a test",
        "model": {"id": str(model)},
        "behaviours": {
            "rudeness": {
                "examples": examples,
                "prompts": prompts,
                "benign": prompts,
                "clean": clean,
                "guide": {"kind": "refusal"},
                "report": [{"kind": "refusal"}],
                "max_new_tokens": 3,
            }
        },
        "evaluation": {"window": 32, "ablation_prompts": 6},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    return Study.start(path, "rudeness", results=folder / "results")


def vowels(texts: Any, prompts: Any = None) -> np.ndarray:
    """Any score that differs between continuations."""
    return np.array([float(sum(map(ord, text)) % 2) for text in texts])


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path
) -> Iterator[tuple[Bench, Study]]:
    folder = tmp_path_factory.mktemp("ablations")
    study = write_study(folder, tiny_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorers, "build", lambda spec: Named("parity", vowels))
        patch.setattr(Study, "cache", property(lambda self: folder / "cache"))
        model, tokenizer = study.load_model()
        data = behaviours.load("rudeness", study.spec, tokenizer=tokenizer)
        examples = data.examples["train"]
        states = activations.pooled_states(model, tokenizer, [e.text for e in examples])
        probes = probe.fit(states, [e.label for e in examples], estimator="mean_difference")
        probe.save(study.path("probe.safetensors"), probes)
        chosen = probes[2]
        rows = region.select(region.cosine_scores(model, chosen.direction), 0.1)
        about = {"probe": chosen.name, "rule": "cosine", "fraction": 0.1, "strength": 1.0}
        Surgery.build(model, rows, chosen.direction, 1.0, about=about).save(study.path("surgery"))
        yield material.prepare(study, model, tokenizer, data), study


@pytest.fixture(scope="module")
def by_block(
    bench: tuple[Bench, Study], tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path
) -> Iterator[tuple[Bench, Study]]:
    """The bench of an edit with a direction for every block."""
    one, _ = bench
    study = write_study(tmp_path_factory.mktemp("by_block"), tiny_folder)
    training = table.training_texts(one.data, 20)
    fitted = Covariance().fit(one.model, one.tokenizer, training, score=vowels)
    about = {"probe": "likelihood@3", "rule": "covariance", "fraction": 0.1, "strength": 1.0}
    edit = dataclasses.replace(fitted.plan(one.model, 1.0, k=0.1), about=about)
    edit.save(study.path("surgery"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorers, "build", lambda spec: Named("parity", vowels))
        patch.setattr(Study, "cache", property(lambda self: study.folder / "cache"))
        yield material.prepare(study, one.model, one.tokenizer, one.data), study


def test_with_a_direction_for_every_block_each_moves_along_its_own(
    by_block: tuple[Bench, Study],
) -> None:
    one, _ = by_block
    assert one.blockwise and one.chosen.name == "likelihood@3"
    assert torch.equal(one.rows(), one.surgery.rows)  # the statistics are those it was made from
    for name in ("mean over covariance", "mean alone"):
        moved = changed(one, named(one, "directions", name, 1.0))
        assert moved and all("gate" in path for path in moved)
        for path, delta in moved.items():
            block = next(int(part) for part in path.split(".") if part.isdigit())
            rows = delta[delta.norm(dim=1) > 0].float()
            lengths = rows @ one.directions[name][block]
            assert torch.allclose(lengths, torch.full_like(lengths, one.step), rtol=0.02)
    assert [v.name for v in QUESTIONS["matrices"].variants(one)] == ["gate", "up"]
    assert not list(QUESTIONS["layers"].variants(one))
    means = steering.mean_inputs(one, one.directions[CHOSEN])
    each = [steering.mean_inputs(one, v)[n] for n, v in enumerate(one.directions[CHOSEN])]
    assert means == pytest.approx(each)


@pytest.mark.slow
def test_with_a_direction_for_every_block_all_is_put_into_words(
    by_block: tuple[Bench, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, study = by_block
    monkeypatch.setattr(questions, "FRACTIONS", (0.1, 1.0))
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    rows = {name: held for name, held in measured(one).items() if held}
    assert set(QUESTIONS) - set(rows) == {"layers"}
    result = {
        "base": one.meter.base.rate(one.scorer).as_dict(),
        "surgery": {"rule": one.rule},
        "layer": one.chosen.layer,
        "lines": {name: summarise(held, rows["controls"][0].flags) for name, held in rows.items()},
        "transfer": inside.transfer(one, study),
    }
    for name in [*rows, "transfer"]:
        plt.close(ablation_figures.draw(result, name, "x"))
    words = ablation_findings.everything(result)
    assert len(words.splitlines()) == len(rows) + 1
    _, text = ablation_findings.finding(result, "directions")
    assert "At the same divergence" in text and "random start" not in text


def measured(bench: Bench) -> dict[str, list[Measurement]]:
    return {
        name: bench.measure(asked.variants(bench), texts=2) for name, asked in QUESTIONS.items()
    }


@pytest.mark.slow
def test_every_question_is_answered_undone_and_put_into_words(
    bench: tuple[Bench, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, study = bench
    before = architectures.state(one.model)
    for name, fewer in {"FRACTIONS": (0.1, 1.0), "FACTORS": (1.0,), "GAPS": (1.0,)}.items():
        monkeypatch.setattr(questions, name, fewer)
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    rows = measured(one)
    flags = rows["controls"][0].flags
    result: dict[str, Any] = {
        "base": one.meter.base.rate(one.scorer).as_dict(),
        "surgery": {"rule": one.rule},
        "layer": one.chosen.layer,
        "lines": {name: summarise(held, flags) for name, held in rows.items()},
    }
    assert {len(draws) for draws in one.starts.values()} == {one.draws}
    result["starts"] = one.starts
    result["gates"] = inside.gates(one)
    result["cosines"] = inside.cosines(one, study)
    result["transfer"] = inside.transfer(one, study)
    assert all(
        architectures.same_bits(tensor, before[name])
        for name, tensor in architectures.state(one.model).items()
    )
    # A second run measures nothing again, and ends with the same numbers.
    monkeypatch.setattr(type(one.meter), "read", None)
    monkeypatch.setattr(type(one.meter.reference), "compare", None)
    assert measured(one) == rows
    held = json.loads(json.dumps(result))
    for name, asked in QUESTIONS.items():
        assert ablation_tables.table(held["lines"][name], blocks=3, axis=asked.axis)
    for name in ablation_findings.FINDINGS:
        headline, text = ablation_findings.finding(held, name)
        assert headline and text and "nan" not in text
        plt.close(ablation_figures.draw(held, name, "x"))
    _, words = ablation_findings.finding(held, "directions")
    assert "Cosine of W1 and W1 − W0 with it, layer" in words
    assert len(ablation_findings.everything(held).splitlines()) == len(ablation_findings.FINDINGS)
    for name in ("random direction, same rows", "random rows, same step"):
        (line,) = [ln for ln in result["lines"]["controls"] if ln["name"] == name]
        assert line["draws"] >= 5


def changed(bench: Bench, variant: Variant) -> dict[str, torch.Tensor]:
    """Parameter → what the variant adds to it."""
    before = architectures.state(bench.model)
    with variant.edit():
        after = architectures.state(bench.model)
    return {k: after[k] - before[k] for k in before if not torch.equal(after[k], before[k])}


def named(bench: Bench, question: str, name: str, x: float | None = None) -> Variant:
    return next(v for v in QUESTIONS[question].variants(bench) if (v.name, v.x) == (name, x))


def size(bench: Bench, variant: Variant) -> float:
    parts = [delta.norm() ** 2 for delta in changed(bench, variant).values()]
    return float(torch.stack(parts).sum().sqrt())


def test_controls_move_as_many_rows_as_far(bench: tuple[Bench, Study]) -> None:
    one, _ = bench
    chosen = size(one, named(one, "controls", "as chosen"))
    assert chosen == pytest.approx(one.step * len(one.surgery.rows) ** 0.5, rel=1e-4)
    for name in ("random direction, same rows", "random rows, same step", "inverted direction"):
        assert size(one, named(one, "controls", name)) == pytest.approx(chosen, rel=1e-4)
    for x in (30.0, 100.0):
        assert size(one, named(one, "row_counts", "same size", x)) == pytest.approx(
            chosen, rel=0.03
        )


def test_a_quarter_left_out_is_left_alone(bench: tuple[Bench, Study]) -> None:
    one, _ = bench
    window = region.depth_window(one.model, 0.25, 0.5)
    blocks = set(layout.row_blocks(one.model)[window].tolist())
    assert blocks == {1}
    for name in ("without quarter 2", "without quarter 2, K refilled"):
        deltas = changed(one, named(one, "depth", name))
        assert deltas and not any(".1.mlp" in parameter for parameter in deltas)


def test_other_matrices_are_edited_in_their_own_units(bench: tuple[Bench, Study]) -> None:
    one, _ = bench
    (parameter, *_) = changed(one, named(one, "matrices", "o"))
    assert "o_proj" in parameter
    ratio = region.mean_row_norm(one.model, "o") / region.mean_row_norm(one.model)
    rows = len(one.surgery.rows)
    expected = one.step * ratio * rows**0.5
    assert size(one, named(one, "matrices", "o")) == pytest.approx(expected, rel=1e-3)


def test_a_shifted_gate_opens_as_far_as_the_edit_opens_it_on_average(
    bench: tuple[Bench, Study],
) -> None:
    one, _ = bench
    v, row = one.directions[CHOSEN], one.surgery.rows[:1]
    (entry,) = [(number, local) for number, local, _ in layout.split_by_matrix([48] * 3, row)]
    block = layout.blocks(one.model)[entry[0]]
    texts = [e.text for e in one.data.examples["train"] if e.label]

    def opened() -> float:
        found = []
        gate = block.get_submodule("mlp.gate_proj")

        def watch(_module: Any, _args: Any, output: torch.Tensor) -> None:
            found.append(output[..., entry[1]].double().flatten())

        with tools.hooked([gate.register_forward_hook(watch)]), torch.no_grad():
            for text in texts:
                ids = torch.tensor([one.tokenizer(text)["input_ids"]])
                one.model(input_ids=ids)
        return float(torch.cat(found).mean())

    plain = opened()
    with one.edit(row, v):
        edited = opened()
    with steering.gates_shifted(one, row, v):
        shifted = opened()
    assert edited - plain == pytest.approx(shifted - plain, rel=1e-3)
    assert abs(edited - plain) > 1e-4


def test_damage_is_matched_by_halving(bench: tuple[Bench, Study]) -> None:
    one, _ = bench
    rises = iter(())

    @contextmanager
    def at(times: float) -> Iterator[None]:
        nonlocal rises
        rises = iter([times])
        yield

    class Fake(Bench):
        def _damage(self, edited: Any) -> float:
            with edited:
                return next(rises, 1.5) ** 2

    fake = Fake(**{**vars(one)})
    fake.ledger = type(one.ledger)(Path("/nowhere/at/all"), "k")
    fake.ledger.put = lambda name, value: dict(value)  # type: ignore[method-assign, assignment]
    assert fake.matched("toy", at) == pytest.approx(1.5, rel=0.08)
    for unit in (1 / 5000, 1 / 100, 5000):
        found = fake.matched(f"of {unit}", lambda times, unit=unit: at(unit * times))
        assert unit * found == pytest.approx(1.5, rel=0.08)
    assert fake.matched("harmless", lambda times: at(0)) > 1e5


def test_what_cannot_be_done_is_said_and_not_left_out(bench: tuple[Bench, Study]) -> None:
    one, _ = bench
    variant = Variant("matrices", "nothing", lambda: one.edit(torch.tensor([]), torch.ones(32)))
    (row,) = one.measure([variant])
    assert "rows" in row.refused
    (line,) = summarise([row], [0] * 6)
    assert row.refused in ablation_tables.table([line], blocks=3)
    with pytest.raises(UserError, match="cannot be ranked"):
        one.rows(ranking="feeling")


@pytest.mark.parametrize("name", ["llama", "gemma", "gemma2", "gpt2", "gpt_neox", "phi3", "qwen3"])
def test_gains_are_what_the_norms_do(name: str) -> None:
    model = architectures.build(name)
    (gain, *_) = gains.gains(model)
    block = layout.blocks(model)[0]
    held = next(getattr(block, norm) for norm in gains.MLP_NORMS if hasattr(block, norm))
    weight = held.weight + 1 if name.startswith("gemma") else held.weight
    assert torch.allclose(gain, weight, atol=1e-3)
    direction = torch.randn(gain.shape, generator=torch.Generator().manual_seed(0))
    first = layout.weight_rows(model)[0].weight
    expected = torch.nn.functional.cosine_similarity(first * weight, direction[None])
    found = gains.cosine_gain_scores(model, direction)
    assert torch.allclose(found[: len(first)], expected, atol=1e-3)
    assert len(found) == layout.total_rows(model)


def test_gains_of_other_matrices() -> None:
    model = architectures.build("llama")
    block = layout.blocks(model)[1]
    assert torch.allclose(gains.gains(model, "q")[1], block.input_layernorm.weight, atol=1e-3)
    with pytest.raises(UserError, match="down"):
        gains.gains(model, "down")


def test_auc_has_an_interval_that_narrows_with_texts() -> None:
    states = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    labels = (states[:, 0] + states[:, 1] > 0).long()
    (one,) = probe.fit(states[:, None] * torch.tensor([1.0, 0, 0, 0]), labels, estimator="lda")
    few, many = (inside.area(one, states[:n], labels[:n].tolist()) for n in (50, 400))
    for reading in (few, many):
        assert reading["low"] < reading["value"] < reading["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]


@pytest.mark.parametrize("n", [8, 80])
def test_an_auc_of_one_still_has_a_width(n, monkeypatch):
    monkeypatch.setattr(inside.probe, "measure", lambda *_: {"auc": 1.0})
    found = inside.area(None, None, [0, 1] * (n // 2))
    assert found["high"] == 1.0
    assert found["low"] == pytest.approx(0.025 ** (2 / n))

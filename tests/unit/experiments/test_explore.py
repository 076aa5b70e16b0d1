"""The panel shows what an edit does, and leaves the model as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import same_bits, state

from surgery_lib.errors import UserError
from surgery_lib.experiments import explore, panel
from surgery_lib.experiments.explore import Edit, Writing
from surgery_lib.experiments.panel_page import GREEN, RED
from surgery_lib.selection.sweep import Point, Table
from surgery_lib.surgery import Surgery, region
from surgery_lib.surgery.probe import Probe

PROMPTS = ["one <b>", "two", "three"]


class Vowels:
    name = "vowels"

    def __call__(self, texts: Any, prompts: Any = None) -> np.ndarray:
        return np.array([float("a" in text) for text in texts])


@pytest.fixture
def probes(tiny: Any) -> dict[str, Probe]:
    width = tiny[0].config.hidden_size
    vectors = torch.nn.functional.normalize(torch.randn(2, width), dim=1)
    return {
        f"made@{layer}": Probe(vector, vector, 0.0, layer, "made")
        for layer, vector in zip((1, 3), vectors, strict=True)
    }


@pytest.fixture
def table(tiny: Any, probes: dict[str, Probe]) -> Table:
    """Scores that no cosine gives, as the effect rule's are."""
    scores = {("effect", name): torch.randn(3 * 48) for name in probes}
    return Table(probes, scores, "row_norm", "gate", region.mean_row_norm(tiny[0]))


@pytest.fixture
def shown(tiny: Any, table: Table) -> panel.Panel:
    point = Point("made@3", "effect", 0.08, 4.7)
    return panel.panel(
        *tiny, table.probes, [Vowels()], PROMPTS, table=table, point=point, budget=0.001
    )


def press(shown: panel.Panel, button: str) -> None:
    shown.buttons[button].click()


def test_no_strength_means_no_difference(tiny: Any, probes: dict[str, Probe]) -> None:
    explorer = explore.Explorer(*tiny, probes, [Vowels()])
    same = explorer.compare("one", Edit("made@1", k=0.1, strength=0.0))
    assert same.base == same.edited and same.kl == pytest.approx(0, abs=1e-6)
    assert len(same.base.tokens) == len(same.base.scores)
    other = explorer.compare("one", Edit("made@1", k=0.5, strength=4.0))
    assert other.base == same.base and other.kl > 0.01


def test_it_opens_at_the_chosen_edit_and_goes_back_to_it(
    tiny: Any, table: Table, shown: panel.Panel
) -> None:
    chosen = table.surgery(tiny[0], Point("made@3", "effect", 0.08, 4.7))
    for _ in range(2):
        here = shown.explorer.surgery(shown.edit)
        assert torch.equal(here.rows, chosen.rows)
        assert torch.equal(here.coefficients, chosen.coefficients)
        assert torch.equal(here.direction, chosen.direction)
        # Beyond the slider's usual end: it is not clamped.
        assert shown.controls["strength"].value == 4.7
        assert "the chosen edit" in shown.output.value
        shown.controls["score"].value = "cosine"
        shown.controls["strength"].value = -1.0
        assert "the chosen edit" not in shown.output.value
        press(shown, "Reset")


def test_a_block_may_have_a_strength_of_its_own(shown: panel.Panel) -> None:
    whole = shown.explorer.surgery(shown.edit)
    shown.controls["block"].value = 1
    assert shown.controls["strength"].value == 4.7 and shown.edit == shown.chosen
    shown.controls["strength"].value = 1.0
    part = shown.explorer.surgery(shown.edit)
    blocks = shown.explorer.blocks[part.rows]
    assert torch.equal(part.coefficients[blocks != 1], whole.coefficients[blocks != 1])
    assert torch.allclose(part.coefficients[blocks == 1] * 4.7, whole.coefficients[blocks == 1])
    assert "block 1: 1.0" in shown.output.value
    shown.controls["block"].value = panel.ALL
    assert shown.controls["strength"].value == 4.7
    press(shown, "Reset")
    assert shown.edit == shown.chosen


def test_every_bit_is_restored(tiny: Any, shown: panel.Panel) -> None:
    before = state(tiny[0])
    shown.counted.value = True
    shown.controls["strength"].value = 3.5
    shown.controls["rows"].value = "random"
    for name, tensor in state(tiny[0]).items():
        assert same_bits(tensor, before[name])


def test_each_control_changes_what_is_shown(shown: panel.Panel) -> None:
    seen = [shown.output.value]

    def change(control: Any, value: Any) -> None:
        control.value = value
        seen.append(shown.output.value)

    change(shown.controls["strength"], 4.0)
    change(shown.controls["k"], 0.2)
    change(shown.controls["direction"], "made@1")
    change(shown.controls["rows"], "aligned")
    change(shown.controls["score"], "cosine")
    change(shown.controls["length"], 9)
    change(shown.controls["temperature"], 1.0)
    change(shown.chat, True)
    change(shown.pick, "two")
    assert shown.prompt.value == "two"
    change(shown.prompt, "my own")
    assert len(set(seen)) == len(seen)
    shown.prompt.value = " "
    assert "Write a prompt" in shown.output.value


def test_with_at_once_off_it_waits_for_run_and_says_when_it_works(
    shown: panel.Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown.live.value = False
    before = shown.output.value
    shown.controls["strength"].value = 2.0
    assert shown.output.value == before
    signs = []
    compare = shown.explorer.compare

    def watched(*arguments: Any) -> Any:
        signs.append((shown.status.value, shown.buttons["Run"].disabled))
        return compare(*arguments)

    monkeypatch.setattr(shown.explorer, "compare", watched)
    press(shown, "Run")
    assert shown.output.value != before
    assert "running" in signs[0][0] and signs[0][1]
    assert "ready" in shown.status.value and not shown.buttons["Run"].disabled


def test_the_divergence_says_whether_the_budget_holds(shown: panel.Panel) -> None:
    shown.controls["strength"].value = 0.0
    assert GREEN in shown.output.value and "within the budget of 0.001" in shown.output.value
    shown.controls["k"].value = 0.2
    shown.controls["strength"].value = 4.7
    assert RED in shown.output.value and "BEYOND the budget" in shown.output.value


def test_the_rate_is_that_of_the_prompts(shown: panel.Panel) -> None:
    shown.counted.value = True
    writing = Writing()
    base = shown.explorer.rate(PROMPTS, writing)
    one_by_one = [shown.explorer.compare(text, shown.edit) for text in PROMPTS]
    assert base.value == np.mean([side.base.verdicts["vowels"][1] for side in one_by_one])
    edited = shown.explorer.rate(PROMPTS, writing, shown.edit)
    assert edited.value == np.mean([side.edited.verdicts["vowels"][1] for side in one_by_one])
    assert f"{100 * base.value:.0f} [" in shown.status.value and "of 3 prompts" in (
        shown.status.value
    )


def test_what_is_seen_can_be_saved_once(shown: panel.Panel, tmp_path: Path) -> None:
    shown.controls["block"].value = 0
    shown.controls["strength"].value = 1.5
    shown.folder.value = str(tmp_path / "mine")
    press(shown, "Save")
    assert "saved" in shown.status.value
    held, here = Surgery.load(tmp_path / "mine"), shown.explorer.surgery(shown.edit)
    assert torch.equal(held.coefficients, here.coefficients) and torch.equal(held.rows, here.rows)
    press(shown, "Save")
    assert "holds a patch already" in shown.status.value


def test_what_goes_wrong_is_a_line_in_the_panel(shown: panel.Panel) -> None:
    shown.prompt.value = "half a letter \ud800"
    assert RED in shown.status.value and "Error" not in shown.status.value
    assert not shown.buttons["Run"].disabled
    shown.prompt.value = "whole"
    assert "ready" in shown.status.value


def test_text_is_escaped_and_asks_nothing_of_the_network(shown: panel.Panel) -> None:
    assert "one &lt;b&gt;" in shown.output.value
    assert "http" not in shown.output.value and "<script" not in shown.output.value


def test_it_is_a_widget_with_a_screen_and_a_picture_without(
    shown: panel.Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = "application/vnd.jupyter.widget-view+json"
    for name in (panel.HEADLESS, *panel.SCREENS):
        monkeypatch.delenv(name, raising=False)
    # As papermill runs it: nothing is set, and a widget would be exported as nothing.
    still = shown._repr_mimebundle_()
    assert set(still) == {"text/html", "text/plain"} and "<table" in still["text/html"]
    monkeypatch.setenv(panel.SCREENS[0], "notebook.ipynb")  # as Jupyter's server runs it
    live = shown._repr_mimebundle_()
    assert view in live and "model-surgery-panel" in live["text/html"]
    monkeypatch.setenv(panel.HEADLESS, "1")
    assert set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}


def test_what_it_cannot_show_it_says(tiny: Any, probes: dict[str, Probe]) -> None:
    with pytest.raises(UserError, match="no probes"):
        explore.Explorer(*tiny, {})
    explorer = explore.Explorer(*tiny, probes)
    with pytest.raises(UserError, match="no score effect"):
        explorer.surgery(Edit("made@1", "effect"))
    with pytest.raises(UserError, match="no probe other"):
        explorer.surgery(Edit("other"))
    with pytest.raises(UserError, match="needs a scorer"):
        explorer.rate(["a"])
    with pytest.raises(UserError, match="needs a prompt"):
        panel.panel(*tiny, probes, [], [])

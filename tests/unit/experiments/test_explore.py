"""The panel shows what an edit does, and leaves the model as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from architectures import same_bits, state

from surgery_lib.errors import UserError
from surgery_lib.experiments import explore
from surgery_lib.surgery.probe import Probe


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
def shown(tiny: Any, probes: dict[str, Probe]) -> explore.Panel:
    return explore.panel(*tiny, probes, [Vowels()], "one <b>", fraction=0.1)


def test_no_strength_means_no_difference(tiny: Any, probes: dict[str, Probe]) -> None:
    explorer = explore.Explorer(*tiny, probes, [Vowels()])
    same = explorer.compare("one", "made@1", "opposed", 0.1, 0.0)
    assert same.base == same.edited and same.kl == pytest.approx(0, abs=1e-6)
    assert len(same.base.tokens) == len(same.base.scores)
    other = explorer.compare("one", "made@1", "opposed", 0.5, 4.0)
    assert other.base == same.base and other.kl > 0.01


def test_every_bit_is_restored(tiny: Any, shown: explore.Panel) -> None:
    before = state(tiny[0])
    shown.controls["strength"].value = 3.5
    shown.controls["rule"].value = "random"
    for name, tensor in state(tiny[0]).items():
        assert same_bits(tensor, before[name])


def test_each_control_changes_what_is_shown(shown: explore.Panel) -> None:
    seen = {shown.output.value}
    shown.controls["strength"].value = 4.0
    seen.add(shown.output.value)
    shown.controls["k"].value = 0.2
    seen.add(shown.output.value)
    shown.controls["direction"].value = "made@3"
    seen.add(shown.output.value)
    shown.controls["rule"].value = "aligned"
    seen.add(shown.output.value)
    shown.prompt.value = "two"
    seen.add(shown.output.value)
    assert len(seen) == 6
    shown.prompt.value = " "
    assert "Write a prompt" in shown.output.value


def test_text_is_escaped_and_asks_nothing_of_the_network(shown: explore.Panel) -> None:
    assert "one &lt;b&gt;" in shown.output.value
    assert "http" not in shown.output.value and "<script" not in shown.output.value


def test_it_is_a_widget_with_a_screen_and_a_picture_without(
    shown: explore.Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = "application/vnd.jupyter.widget-view+json"
    monkeypatch.delenv(explore.HEADLESS, raising=False)
    live = shown._repr_mimebundle_()
    assert view in live and "model-surgery-panel" in live["text/html"]
    monkeypatch.setenv(explore.HEADLESS, "1")
    assert set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}


def test_without_probes_it_says_so(tiny: Any) -> None:
    with pytest.raises(UserError, match="no probes"):
        explore.Explorer(*tiny, {})

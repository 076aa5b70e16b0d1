"""A study with what is asked of it again and again: model, data, states, scorers, meters, pages.

It stands here, and not in the room `study`, because it uses the rooms above that one.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from surgery_lib import files, report, scorers
from surgery_lib.behaviour import BehaviourData
from surgery_lib.data import load as behaviours
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.models import activations
from surgery_lib.scorers.base import Scorer
from surgery_lib.selection import probes, sweep
from surgery_lib.selection.table import Table, prepare
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery, probe


class Context(Study):
    """What every notebook starts with; each part is made when it is first asked for, once."""

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return super().load_model()

    @cached_property
    def _data(self) -> BehaviourData:
        limit = self.profile.evaluation.limit
        return behaviours.load(self.name, self.spec, tokenizer=self.load_model()[1], limit=limit)

    @cached_property
    def guide(self) -> Scorer:
        """What the behaviour is chosen by, on validation."""
        return scorers.build(self.spec.guide)

    @cached_property
    def judges(self) -> list[Scorer]:
        """What the behaviour is reported by, on test."""
        return [scorers.build(one) for one in self.spec.report]

    @property
    def name(self) -> str:
        """The behaviour's name."""
        return str(self.behaviour)

    def load_model(self) -> tuple[Any, Any]:
        """The model and its tokenizer, as the profile says."""
        return self._loaded

    def data(self) -> BehaviourData:
        """The behaviour's texts and prompts, as many as the profile says."""
        return self._data

    def layers(self) -> list[int]:
        """The layers whose probes the profile asks for."""
        return activations.layer_numbers(self.load_model()[0], self.profile.probe.layers)

    def states(self, split: str) -> tuple[Tensor, list[int]]:
        """Pooled states (texts, layers, width) of a split's labelled texts, and their labels."""
        examples, settings = self.data().examples[split], self.profile.probe
        return probes.read(*self.load_model(), examples, settings, self.layers(), self.cache)

    def probes(self) -> dict[str, probe.Probe]:
        """What notebook 01 fitted, by name."""
        return probe.load(self.path("probe.safetensors"))

    def surgery(self) -> Surgery:
        """What notebook 03 chose."""
        return Surgery.load(self.path("surgery"))

    def table(self, fitted: Mapping[str, probe.Probe]) -> Table:
        """What edits along these probes are built from."""
        return prepare(*self.load_model(), fitted, self.data(), self.profile, self.guide)

    def ledger(self, key: str | None = None) -> sweep.Ledger:
        """The points of the search for an edit that are measured already."""
        key = sweep.ledger_key(self, self.data()) if key is None else key
        return sweep.Ledger(self.path("logs/points.jsonl"), key)

    def meter(self, split: str, judges: Sequence[Scorer] | None = None, **sizes: Any) -> Evaluator:
        """What measures variants on a split: by the guide on validation, by the judges on test.

        `sizes` are those of `Evaluator`.
        """
        if judges is None:
            judges = [self.guide] if split == "validation" else self.judges
        settings = self.profile.evaluation
        subject = (*self.load_model(), self.data(), self.spec, settings, judges)
        return Evaluator(*subject, split=split, **sizes)

    def save_figure(self, figure: Figure, name: str) -> Path:
        """Keep a figure, as vector and raster."""
        return report.save(figure, self.path("figures"), name)

    def save_table(self, name: str, text: str) -> None:
        """Keep a table or a few sentences, as Markdown."""
        files.write_text(self.path(f"tables/{name}.md"), text)

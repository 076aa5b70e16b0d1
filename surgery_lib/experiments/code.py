"""Programs by a model's summaries, against controls, before and after edits."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.diagnostics import code, programs
from surgery_lib.diagnostics.code import Encoder, Program
from surgery_lib.experiments.edits import Edit

SUMMARY = "its summary"


def load(world: bool, each: int, seed: int = 0, longest: int = 1200) -> dict[str, list[Program]]:
    """Programs by split: small ones for the patient's world, POJ-104 otherwise.

    POJ-104's have at most `longest` characters.
    """
    splits = ("train", "test")
    if world:
        return {split: programs.made(split, each, seed) for split in splits}
    return {split: programs.poj(split, each, longest) for split in splits}


class Coder:
    """Embeds all programs in every way, once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        held: dict[str, list[Program]],
        encoder: Encoder,
    ) -> None:
        self.tokenizer = tokenizer
        self.held = held
        self.encoder = encoder
        self.everything = [p.code for split in ("train", "test") for p in held[split]]
        self.cache: Path = files.cache() / "summaries"
        self.said = self.summaries(model)
        self.vectors = {
            SUMMARY: code.embed(encoder, self.said),
            "encoder on the code": code.embed(encoder, self.everything),
            "TF-IDF of its tokens": code.tfidf(self.everything),
            "the model's mean state": code.hidden_mean(model, tokenizer, self.everything),
        }

    @property
    def labels(self) -> tuple[list[int], list[int]]:
        """Problems of the training and of the test programs."""
        train, test = ([p.label for p in self.held[split]] for split in ("train", "test"))
        return train, test

    def summaries(self, model: PreTrainedModel, codes: Sequence[str] | None = None) -> list[str]:
        """What a model says of every program, or of those given."""
        asked = self.everything if codes is None else codes
        return code.summaries(model, self.tokenizer, asked, self.cache)

    def split(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training and of the test programs."""
        count = len(self.held["train"])
        return vectors[:count], vectors[count:]

    def base(self) -> dict[str, Any]:
        """Every embedding of the unedited model's programs, with the loss against the control."""
        control = self.split(self.vectors["encoder on the code"])[1]
        found = {}
        for name, vectors in self.vectors.items():
            train, test = self.split(vectors)
            against = code.lost(control, test, self.labels[1])
            found[name] = {**code.reading(train, test, self.labels), "against": against}
        return found

    def edited(self, found: Iterable[Edit]) -> dict[str, Any]:
        """Each edit: how far the embeddings moved, and the AUC lost, over the test programs."""
        before = self.split(self.vectors[SUMMARY])[1]
        start = len(self.held["train"])
        asked, told = self.everything[start:], self.said[start:]
        readings = {}
        for edit in found:
            if edit.name == "base":
                continue
            with edit.applied() as changed:
                said = self.summaries(changed, asked)
            after = code.embed(self.encoder, said)
            moved = code.drift(before, after)
            readings[edit.name] = {
                **edit.about,
                "drift": float(moved.mean()),
                "same": float(np.mean([a == b for a, b in zip(said, told, strict=True)])),
                "auc": code.clones(after, self.labels[1])["auc"],
                "lost": code.lost(before, after, self.labels[1]),
            }
        return readings

    def examples(self, count: int = 3) -> list[tuple[str, str]]:
        """The first lines of some test programs with their summaries."""
        start = len(self.held["train"])
        places: Sequence[int] = range(start, len(self.everything))
        step = max(1, len(places) // count)
        return [(self.everything[i][:80], self.said[i]) for i in places[::step]][:count]

"""TaskTracker on one model: triples of a world or of real text, readings, and edits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.diagnostics import drift, triplet
from surgery_lib.diagnostics.drift import Probes, Triple
from surgery_lib.errors import UserError
from surgery_lib.experiments.edits import Edit
from surgery_lib.models import resolve, untrained
from surgery_lib.patient import injected

SPLITS = ("train", "validation", "test")
DATASET = "microsoft/TaskTracker"
VALIDATION = 0.2  # of the training pairs, by passage
LEAST = 10


def patient(train: int, test: int, seed: int = 0) -> dict[str, list[Triple]]:
    """Triples of the patient's world by split; a third of `train` more for validation."""
    counts = {"train": train, "validation": max(LEAST, train // 3), "test": test}
    found = {
        split: [
            Triple(i.question, i.clean, i.poisoned, i.passage, i.injected, i.domain, i.position)
            for i in injected.items(split, count, seed)
        ]
        for split, count in counts.items()
    }
    found = _distinct(found)
    drift.check_disjoint(found)
    return found


def real(train: int, test: int, longest: int = 0) -> dict[str, list[Triple]]:
    """Triples of the authors' recipe: other passages, domains and triggers in the test.

    Clean is the paragraph as it was. `longest` drops texts with more characters, 0 for none.
    """
    folder = Path(resolve(DATASET, "datasets"))
    if not folder.is_dir():
        raise UserError(
            f"{DATASET} is not in the mirror; set SURGERY_MIRROR to a folder that holds it"
        )
    held = {
        split: [_triple(row) for row in files.read_jsonl(folder / "sample" / name)]
        for split, name in (("train", "train.jsonl"), ("test", "test_poisoned.jsonl"))
    }
    for split, rows in held.items():
        held[split] = [t for t in rows if not longest or len(t.poisoned) <= longest]
    units = list(dict.fromkeys(triple.unit for triple in held["train"]))
    kept_out = set(units[:: round(1 / VALIDATION)])
    parts = {
        "train": [t for t in held["train"] if t.unit not in kept_out],
        "validation": [t for t in held["train"] if t.unit in kept_out],
        "test": held["test"],
    }
    found = _distinct(parts)
    counts = {"train": train, "validation": max(LEAST, train // 3), "test": test}
    found = {split: _spread(rows, counts[split]) for split, rows in found.items()}
    drift.check_disjoint(found)
    return found


def prompts(tokenizer: Any, world: bool) -> dict[str, drift.Prompt]:
    """The prompt with and without priming, in the world's form or the authors'."""
    if world:
        return {
            "primed": partial(injected.prompt, primed=True),
            "not primed": injected.prompt,
        }
    return {
        name: drift.chat(tokenizer, primed=primed)
        for name, primed in (("primed", True), ("not primed", False))
    }


class Tracker:
    """Probes of the unedited model and everything that is read with them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        triples: Mapping[str, Sequence[Triple]],
        prompt: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.triples = triples
        self.prompt = prompt
        self.given = self.deltas(model)
        self.probes = Probes.fit(self.given["train"])
        self.layer = drift.best_layer(self.probes, self.given["validation"])

    def deltas(
        self, model: PreTrainedModel, splits: Sequence[str] = SPLITS
    ) -> dict[str, torch.Tensor]:
        """Deltas of each split."""
        return {
            split: drift.deltas(model, self.tokenizer, self.triples[split], self.prompt)
            for split in splits
        }

    def base(self) -> dict[str, Any]:
        """AUC by layer, by domain and position at the chosen layer, and with random labels."""
        test = self.given["test"]
        scores = self.probes.scores(test)[..., self.layer]
        one = slice(self.layer, self.layer + 1)
        random = [Probes.fit(self.given["train"][:, :, one], shuffled=seed) for seed in range(5)]
        return {
            "layer": self.layer,
            "layers": drift.by_layer(self.probes, test),
            "all": drift.reading(scores),
            "domain": drift.groups(self.triples["test"], scores, "domain"),
            "position": drift.groups(self.triples["test"], scores, "position"),
            "shuffled": [drift.by_layer(probes, test[:, :, one])[0] for probes in random],
        }

    def edited(self, found: Iterable[Edit]) -> dict[str, Any]:
        """Each edit: the probe of before, and one fitted to the edited model, at one layer."""
        readings = {}
        for edit in found:
            with edit.applied() as changed:
                # The layer is the base model's: nothing is chosen on an edit's validation.
                known = edit.name == "base"
                given = self.given if known else self.deltas(changed, ("train", "test"))
            readings[edit.name] = {**edit.about, **self._both(given)}
        return readings

    def untrained(self, seeds: int = 2) -> dict[str, Any]:
        """The floor: probes fitted to models of the same shape that learnt nothing."""
        found = []
        for seed in range(seeds):
            given = self.deltas(untrained(self.model, seed))
            probes = Probes.fit(given["train"])
            layer = drift.best_layer(probes, given["validation"])
            found.append(drift.reading(probes.scores(given["test"])[..., layer]))
        return {"readings": found, "value": max(reading["value"] for reading in found)}

    def metric(self, seed: int = 0) -> dict[str, Any]:
        """The triplet network on the states of three layers around the chosen one."""
        last = self.given["train"].shape[2]
        middle = min(max(self.layer, 1), last - 2)
        layers = [middle - 1, middle, middle + 1]
        parts = {split: self._states(split, layers) for split in ("train", "test")}
        network = triplet.fit(*parts["train"], seed=seed)
        asked, clean, poisoned = parts["test"]
        scores = triplet.scores(network, asked, [clean, poisoned])
        return {**drift.reading(scores), "layers": layers}

    def _states(self, split: str, layers: Sequence[int]) -> list[torch.Tensor]:
        rows = self.triples[split]
        asked = drift.states(self.model, self.tokenizer, [self.prompt(t.task, "") for t in rows])
        given = self.given[split]
        return [part[:, layers] for part in (asked, asked + given[:, 0], asked + given[:, 1])]

    def _both(self, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        refitted = Probes.fit(given["train"])
        return {
            name: drift.reading(probes.scores(given["test"])[..., self.layer])
            for name, probes in (("frozen", self.probes), ("refitted", refitted))
        }


def track(
    model: PreTrainedModel,
    tokenizer: Any,
    triples: Mapping[str, Sequence[Triple]],
    forms: Mapping[str, Callable[[str, str], str]],
) -> dict[str, Tracker]:
    """A tracker for each form of the prompt."""
    return {name: Tracker(model, tokenizer, triples, prompt) for name, prompt in forms.items()}


def _triple(row: Mapping[str, Any]) -> Triple:
    return Triple(
        task=row["primary_task_prompt"],
        clean=row["orig_text"],
        poisoned=row["final_text_paragraph"],
        unit=row["orig_text"],
        injected=row["secondary_task_prompt"],
        domain=row["secondary_task_type"],
        position=row["embed_loc"],
    )


def _distinct(splits: Mapping[str, Sequence[Triple]]) -> dict[str, list[Triple]]:
    """Triples whose injected task no earlier one of another split has: test first."""
    owner: dict[str, str] = {}
    found: dict[str, list[Triple]] = {}
    for split in reversed(SPLITS):
        rows = splits[split]
        found[split] = [t for t in rows if owner.setdefault(t.injected, split) == split]
    return {split: found[split] for split in SPLITS}


def _spread(rows: Sequence[Triple], count: int) -> list[Triple]:
    """At most `count` triples, evenly over the list, which is sorted by nothing that matters."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]

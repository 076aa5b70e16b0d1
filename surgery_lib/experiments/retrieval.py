"""The study of virtual tokens: SPRING against prompt tuning and LoRA, and on edited models."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines.training import Training
from surgery_lib.baselines.tuning import Delta
from surgery_lib.data import sources
from surgery_lib.diagnostics import answers, retrieval
from surgery_lib.diagnostics.retrieval import Form, Place, Question, Reader
from surgery_lib.evaluation import statistics
from surgery_lib.experiments.edits import Edit
from surgery_lib.experiments.protocols import of_patient
from surgery_lib.study import Study

OPEN = "local/nq-open-passages"
PATIENT = Form("Passage:", " {p}", "", " Question: {q} Answer:", ".")
COUNTS = (0, 1, 5, 10, 20, 50)
PASSAGES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Sizes:
    """How much is trained and measured."""

    train: int = 96
    test: int = 24
    few: int = 8  # questions for each number of passages and each place of the gold one
    steps: int = 24
    batch: int = 4
    rate: float = 1e-2
    lora_rate: float = 5e-3
    new_tokens: int = 12
    longest: int = 600
    counts: Sequence[int] = COUNTS


QUICK = Sizes(train=16, test=4, few=2, steps=2, batch=2, new_tokens=4, longest=200)


def questions(study: Study, sizes: Sizes) -> tuple[list[Question], list[Question], Form]:
    """Questions to train on, others to report on, and how they are written."""
    if of_patient(study.spec):
        # Imported late: most studies never need the patient's generator.
        from surgery_lib.patient import passages

        def drawn(split: str, count: int) -> list[Question]:
            rng = Random(f"retrieval {split} {study.seed}")
            made = (passages.draw(rng, split) for _ in range(count))
            return [Question(asked, (a,), told, gold) for asked, a, told, gold in made]

        return drawn("train", sizes.train), drawn("test", sizes.test), PATIENT

    def read(split: str, count: int) -> list[Question]:
        rows = sources.rows(OPEN, split=split)
        Random(study.seed).shuffle(rows)
        return [
            Question(r["question"], tuple(r["target"]), tuple(r["ret_passages"]), r["gold"])
            for r in rows[:count]
        ]

    return read("train", sizes.train), read("test", sizes.test), Form()


def state_hash(model: PreTrainedModel) -> str:
    """A hash of every weight's bytes: the same before and after, nothing was touched."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Bench:
    """Measures one model on one set of questions."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, study: Study, sizes: Sizes):
        self.model, self.sizes, self.seed = model, sizes, study.seed
        self.train, self.test, form = questions(study, sizes)
        self.reader = Reader(model, tokenizer, form, sizes.longest)
        self.hash = state_hash(model)
        self.training = Training(
            steps=sizes.steps, lr=sizes.rate, batch=sizes.batch, seed=self.seed, progress=False
        )
        width = model.get_input_embeddings().weight.shape[1]
        self.none = torch.zeros(0, width)
        self.base: dict[str, list[float]] = {}

    def tokens(self, place: Place = "between") -> tuple[Tensor, list[float]]:
        """Virtual tokens trained at a place, and the losses of that."""
        return retrieval.learn(self.model, self.reader, self.train, self.training, place=place)

    def lora(self, parameters: int) -> tuple[Delta, int]:
        """Adapters with about as many parameters, trained on the same batches."""
        lora = retrieval.closest_lora(self.model, parameters)
        training = Training(
            **{**vars(self.training), "lr": self.sizes.lora_rate}  # weights are not embeddings
        )
        return retrieval.learn_lora(self.model, self.reader, self.train, training, lora)

    def read(
        self,
        virtual: Tensor | None = None,
        place: Place = "between",
        asked: Sequence[Question] | None = None,
    ) -> dict[str, Any]:
        """EM, F1, contained and CE with intervals, paired with no tokens on the same questions."""
        asked = self.test if asked is None else asked
        tokens = self.none if virtual is None else virtual
        found = answers.measure(
            self.model, self.reader, asked, tokens, place, new_tokens=self.sizes.new_tokens
        )
        reading: dict[str, Any] = {
            name: (statistics.mean if name in ("f1", "ce") else statistics.proportion)(
                values
            ).as_dict()
            for name, values in found.items()
        }
        if len(self.base.get("ce", [])) == len(found["ce"]) and asked is self.test:
            reading["paired"] = {
                name: statistics.compare(self.base[name], found[name], self.seed).as_dict()
                for name in found
            }
        elif asked is self.test and virtual is None:
            self.base = found
        return reading

    def counts(self, virtual: Tensor, place: Place = "between") -> dict[str, dict[str, Any]]:
        """A reading for each number of virtual tokens."""
        return {str(k): self.read(virtual[:k], place) for k in self.sizes.counts if k}

    def shown(self, virtual: Tensor) -> Iterator[dict[str, Any]]:
        """Readings without passages, for each number of them, and each place of the gold one."""
        few = self.test[: self.sizes.few]
        cases: list[tuple[int, int | None]] = [(0, None)]
        cases += [(count, None) for count in PASSAGES]
        cases += [(PASSAGES[-1], place) for place in range(PASSAGES[-1])]
        for count, place in cases:
            asked = [question.shown(count, place) for question in few]
            for k, tokens in ((0, None), (len(virtual), virtual)):
                about = {"passages": count, "gold": place, "k": k}
                yield about | self.read(tokens, asked=asked)

    def edited(self, edits: Sequence[Edit], virtual: Tensor) -> dict[str, dict[str, Any]]:
        """Each edit without tokens, and with those that were trained on the base model."""
        found = {}
        for edit in edits:
            with edit.applied():
                found[edit.name] = {"without": self.read(), "with": self.read(virtual)}
        return found

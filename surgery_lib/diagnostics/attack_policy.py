"""The attacker: a language model that reads an answer and writes what might lead to it."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from surgery_lib.baselines.training import Sampler, Spent, Training, cross_entropy, optimise
from surgery_lib.baselines.tuning import Delta, Lora, tuned
from surgery_lib.diagnostics.attack_reward import OPENING, Attempt, Target
from surgery_lib.models import generation

READ = "Answer: {}\nQuery:"
BETWEEN = "\nOpening:"
LORA = Lora(rank=8, alpha=16)


class Policy:
    """A copy of a model that learns to attack; the model that it was copied from stays as it is.

    `length` is the most tokens that it writes for one attempt.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, length: int = 64):
        self.model = copy.deepcopy(model)
        self.tokenizer = tokenizer
        self.length = length

    def warm_up(self, pairs: Sequence[Target], training: Training) -> list[float]:
        """Learn the form, and what known queries are like, by heart; stays. Losses of the steps."""
        rows, starts = self.rows(pairs, [Attempt(p.query, self._first(p.answer)) for p in pairs])
        sampler = Sampler(len(rows), training.batch, training.seed)
        with tuned(self.model, LORA, training.seed) as part:

            def step(_: int) -> Any:
                at = sampler.draw()
                return cross_entropy(
                    self.model, [rows[i] for i in at], Spent(), [starts[i] for i in at]
                )

            losses = optimise(part.parameters.values(), step, training)
            change = part.change()
        # A block that is never left: what the warm start taught is what the policy starts from.
        Delta(change).applied(self.model, 1.0).__enter__()
        return losses

    def write(
        self, targets: Sequence[Target], samples: int, seed: int, temperature: float = 1.0
    ) -> list[list[Attempt]]:
        """Attempts at each target, drawn from the attacker as it is now."""
        written = generation.generate(
            self.model,
            self.tokenizer,
            [READ.format(target.answer) for target in targets],
            max_new_tokens=self.length,
            samples=samples,
            temperature=temperature,
            seed=seed,
            truncate=True,
            progress=False,
        )
        return [[parse(text) for text in texts] for texts in written]

    def rows(
        self, targets: Sequence[Target], attempts: Sequence[Attempt]
    ) -> tuple[list[list[int]], list[int]]:
        """What the attacker reads and writes as one text with its end, and where it writes."""
        rows, starts = [], []
        prompts = [READ.format(target.answer) for target in targets]
        before = generation.encode(
            self.model, self.tokenizer, prompts, self.length + 1, truncate=True
        )
        for ids, attempt in zip(before, attempts, strict=True):
            text = f" {attempt.query}{BETWEEN} {attempt.opening}".rstrip()
            own = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.length]
            rows.append([*ids, *own, self.tokenizer.eos_token_id])
            starts.append(len(ids))
        return rows, starts

    def changed(self, delta: Delta | None) -> AbstractContextManager[Any]:
        """The attacker with what a training taught it, for the length of a `with` block."""
        return (delta or Delta({})).applied(self.model, 1.0)

    def _first(self, answer: str) -> str:
        """The first words of an answer, a quarter of its tokens."""
        ids = self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        return str(self.tokenizer.decode(ids[: int(OPENING * len(ids))])).strip()


def parse(text: str) -> Attempt:
    """Query and opening of what an attacker wrote; all of it is a query where no opening is."""
    query, _, opening = text.partition(BETWEEN)
    return Attempt(query.strip(), opening.partition("\n")[0].strip())

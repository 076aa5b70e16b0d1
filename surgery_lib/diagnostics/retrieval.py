"""Virtual tokens between passages and question, the weights untouched (SPRING, arXiv 2405.19670).

They see the passages and the question sees them; `baselines.spring` puts tokens before the whole
text, which is prompt tuning and the rival here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines.training import Sampler, Training, optimise
from surgery_lib.baselines.tuning import Delta, Lora, frozen, tuned
from surgery_lib.models import generation

Place = Literal["between", "front"]
INSTRUCTION = (
    "According to the previous relevant passages, please answer the following question. Only "
    "return the answer without any other words."
)
LENGTH = 50


@dataclass(frozen=True)
class Question:
    """A question, its right answers, passages, and the place among them of one that has it."""

    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]
    gold: int

    def shown(self, count: int, place: int | None = None) -> "Question":
        """With `count` passages, the gold one at `place` among them, or wherever it falls."""
        others = [p for i, p in enumerate(self.passages) if i != self.gold][: max(0, count - 1)]
        if count == 0:
            return Question(self.text, self.answers, (), 0)
        at = min(self.gold, len(others)) if place is None else place
        return Question(
            self.text, self.answers, (*others[:at], self.passages[self.gold], *others[at:]), at
        )


@dataclass(frozen=True)
class Form:
    """How passages, question and answer are written; the answer ends with `end` and the end token.

    The standard is SPRING's. The space before an answer belongs to it.
    """

    lead: str = ""
    each: str = "[{n}] {p}\n"
    tail: str = "\n"
    asked: str = "Question: {q}\nAnswer:"
    end: str = " "

    def before(self, passages: Sequence[str]) -> str:
        """What stands before the virtual tokens; nothing without passages."""
        if not passages:
            return ""
        told = "".join(self.each.format(n=n, p=p) for n, p in enumerate(passages, start=1))
        return f"{self.lead}{told}{self.tail}"

    def after(self, question: str) -> str:
        """What stands behind them, up to where the answer begins."""
        return self.asked.format(q=question)


@dataclass(frozen=True)
class Row:
    """One text as tokens: before the virtual ones, after them, and the answer."""

    before: list[int]
    after: list[int]
    answer: list[int]


class Reader:
    """Turns questions into rows of tokens, `longest` at most; passages lose their beginning."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, form: Form, longest: int = 600):
        self.tokenizer = tokenizer
        self.form = form
        held = generation.context_length(model)
        self.longest = longest if held is None else min(longest, held - LENGTH - 16)

    def row(self, question: Question, answer: str) -> Row:
        """A question with its passages, and one answer."""
        after = self._ids(self.form.after(question.text))
        said = self._ids(f" {answer}{self.form.end}")
        ends = self.tokenizer.eos_token_id
        said += [] if ends is None else [ends]
        before = self._ids(self.form.before(question.passages))
        first = self.tokenizer("")["input_ids"]  # what the tokenizer begins every text with
        room = self.longest - len(first) - len(after) - len(said)
        return Row([*first, *before[max(0, len(before) - room) :]], after, said)

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found if text else []


def embedded(
    model: PreTrainedModel,
    rows: Sequence[Row],
    virtual: Tensor,
    place: Place = "between",
    said: bool = True,
) -> list[Tensor]:
    """Each row as embeddings (tokens, width), the virtual ones (k, width) among them.

    Without `said` a row ends where its answer begins.
    """
    words = model.get_input_embeddings()

    def looked_up(ids: list[int]) -> Tensor:
        found: Tensor = words(torch.tensor(ids, dtype=torch.long, device=model.device))
        return found

    found = []
    for row in rows:
        ids = [*row.before, *row.after, *(row.answer if said else [])]
        at = len(row.before) if place == "between" else 0
        whole = looked_up(ids)
        found.append(torch.cat([whole[:at], virtual.to(whole), whole[at:]]))
    return found


def answer_logits(
    model: PreTrainedModel, rows: Sequence[Row], virtual: Tensor, place: Place = "between"
) -> list[Tensor]:
    """Logits (answer tokens, vocabulary) of each row's answer, padded on the right together."""
    parts = embedded(model, rows, virtual, place)
    inputs = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    # Padding stands right of every real token, where a causal model cannot see it.
    logits = model(inputs_embeds=inputs, use_cache=False).logits
    found = []
    for row, part, own in zip(rows, parts, logits, strict=True):
        begin = len(part) - len(row.answer)
        found.append(own[begin - 1 : len(part) - 1])
    return found


def answer_losses(
    model: PreTrainedModel, rows: Sequence[Row], virtual: Tensor, place: Place = "between"
) -> Tensor:
    """Nats a token of each row's answer: (rows,)."""
    losses = [
        nn.functional.cross_entropy(logits.float(), torch.tensor(row.answer, device=logits.device))
        for row, logits in zip(rows, answer_logits(model, rows, virtual, place), strict=True)
    ]
    return torch.stack(losses)


def first_tokens(model: PreTrainedModel, tokenizer: Any, length: int = LENGTH) -> Tensor:
    """Embeddings (length, width) of SPRING's instruction, repeated until there are enough."""
    ids = tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"]
    ids = (ids * (length // len(ids) + 1))[:length]
    weight: Tensor = model.get_input_embeddings().weight.detach()
    return weight[torch.tensor(ids, device=weight.device)].float().clone()


class Samples:
    """Training rows without end: passages shuffled, their number and the answer drawn anew."""

    def __init__(self, reader: Reader, questions: Sequence[Question], training: Training):
        self.reader = reader
        self.questions = questions
        self.random = Random(training.seed)
        self.sampler = Sampler(len(questions), training.batch, training.seed)

    def draw(self) -> list[Row]:
        """The next batch; the passage with the answer is always among those shown."""
        rows = []
        for i in self.sampler.draw():
            question = self.questions[i]
            count = self.random.randint(1, len(question.passages))
            drawn = question.shown(count, self.random.randrange(count))
            rows.append(self.reader.row(drawn, self.random.choice(question.answers)))
        return rows


def learn(
    model: PreTrainedModel,
    reader: Reader,
    questions: Sequence[Question],
    training: Training,
    *,
    place: Place = "between",
    length: int = LENGTH,
) -> tuple[Tensor, list[float]]:
    """Virtual tokens (length, width) and the losses of their training, the model frozen.

    Each batch sees the first k of them, k drawn from 1 to `length`, so that any k works later.
    """
    samples = Samples(reader, questions, training)
    counts = Random(f"tokens {training.seed}")
    with frozen(model):
        virtual = nn.Parameter(first_tokens(model, reader.tokenizer, length))

        def step(_: int) -> Tensor:
            k = counts.randint(1, length)
            return answer_losses(model, samples.draw(), virtual[:k], place).mean()

        losses = optimise([virtual], step, training)
    return virtual.detach(), losses


def closest_lora(model: PreTrainedModel, parameters: int) -> Lora:
    """Adapters of query and value maps whose number of parameters is nearest to the one given."""
    shapes = {
        name.rsplit(".", 1)[-1]: 0 for name, _ in model.named_modules() if name.endswith("_proj")
    }
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in shapes:
            shapes[last] += sum(module.weight.shape)
    choices = [
        Lora(rank, 2 * rank, targets)
        for targets in (("v_proj",), ("q_proj",), ("q_proj", "v_proj"))
        for rank in (1, 2, 4, 8)
        if all(target in shapes for target in targets)
    ]
    return min(
        choices or [Lora(1, 2)],
        key=lambda lora: abs(lora.rank * sum(shapes.get(t, 0) for t in lora.targets) - parameters),
    )


def learn_lora(
    model: PreTrainedModel,
    reader: Reader,
    questions: Sequence[Question],
    training: Training,
    lora: Lora,
) -> tuple[Delta, int]:
    """Low-rank change by the same loss and batches, and its number of trained parameters."""
    samples = Samples(reader, questions, training)
    none = model.get_input_embeddings().weight.new_zeros(0, model.config.hidden_size)
    with tuned(model, lora, training.seed) as part:
        optimise(
            part.parameters.values(),
            lambda _: answer_losses(model, samples.draw(), none).mean(),
            training,
        )
        return Delta(part.change()), sum(p.numel() for p in part.parameters.values())

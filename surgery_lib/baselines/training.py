"""What the trained methods share: batches of texts, likelihoods, one optimiser loop, the fit.

A trained method is a function that learns a `Delta`; `WeightBaseline` makes it satisfy the contract
of the comparison.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib.baselines.base import (
    Cost,
    Kind,
    Lesson,
    Method,
    Result,
    SearchRange,
    Taught,
    strength_range,
)
from surgery_lib.baselines.tuning import Delta, Tuned, Which, tuned
from surgery_lib.errors import UserError
from surgery_lib.models import tokens


@dataclass(frozen=True)
class Training:
    """How long and how fast to train. `batch` counts texts; `max_tokens` cuts each of them."""

    steps: int = 100
    lr: float = 1e-3
    batch: int = 8
    max_tokens: int = 64
    warmup: float = 0.1
    seed: int = 0
    progress: bool = True


@dataclass
class Spent:
    """What a fit has used so far: texts and prompts (`labels` in all), tokens, own completions."""

    labels: int = 0
    prompts: int = 0
    benign: int = 0
    samples: int = 0
    forward: int = 0
    backward: int = 0

    def read(self, lengths: Tensor) -> None:
        """Count one batch; while gradients are recorded, its backward pass too."""
        self.forward += int(lengths.sum())
        self.backward += int(lengths.sum()) if torch.is_grad_enabled() else 0

    def price(self, parameters: int, **rest: Any) -> Cost:
        """The cost of having trained so much and changed or added so many numbers."""
        read = {"prompts": self.prompts, "benign": self.benign, "samples": self.samples}
        rest = {**read, "parameters": parameters, "needs_gradients": True, **rest}
        return Cost(self.labels, self.forward, self.backward, **rest)


class Sampler:
    """Indices in batches, all of them in a new order each epoch; one seed, one sequence."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < 1:
            raise UserError("there is nothing to train on; give at least one text of each label")
        self.count = count
        self.size = min(batch, count)
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def draw(self) -> list[int]:
        """The next batch; a set smaller than a batch is given whole."""
        while len(self.queue) < self.size:
            self.queue += torch.randperm(self.count, generator=self.generator).tolist()
        drawn, self.queue = self.queue[: self.size], self.queue[self.size :]
        return drawn


def optimise(
    parameters: Iterable[nn.Parameter], loss: Callable[[int], Tensor], training: Training
) -> list[float]:
    """AdamW on `loss(step)`, gradients clipped at norm 1; returns the loss of every step.

    No weight decay: it would move weights that no gradient reaches. The rate rises over the warm-up
    and falls linearly to zero. UserError where the loss is not finite.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(trained, lr=training.lr, weight_decay=0.0)
    warm = max(1, round(training.warmup * training.steps))
    losses = []
    for step in tqdm(range(training.steps), desc="training", disable=not training.progress):
        share = min((step + 1) / warm, (training.steps - step) / max(1, training.steps - warm))
        for group in optimiser.param_groups:
            group["lr"] = training.lr * share
        value = loss(step)
        if not torch.isfinite(value):
            raise UserError(f"the loss is not finite at step {step}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.append(float(value.detach()))
    return losses


def encode(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Token ids of the texts that have at least two tokens: one to read and one to predict."""
    if not texts:
        raise UserError("there is nothing to train on; give at least one text of each label")
    found = tokens.tokenize(model, tokenizer, texts, max_tokens)
    return [ids for ids in found if len(ids) > 1]


def read(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], spent: Spent
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (texts, longest, vocabulary), token ids and lengths of texts padded on the right."""
    ids, lengths = tokens.pad(rows)
    ids, lengths = ids.to(model.device), lengths.to(model.device)
    spent.read(lengths)
    # Padding stands right of every real token, where a causal model cannot see it.
    return model(input_ids=ids, use_cache=False).logits, ids, lengths


def log_likelihoods(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int] | None,
    spent: Spent,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each text from token `starts` on, and of how many tokens: both (texts,).

    None starts at token 1; token 0 has nothing before it and never counts.
    """
    logits, ids, lengths = read(model, rows, spent)
    picked = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    position = torch.arange(1, ids.shape[1], device=ids.device)
    first = torch.ones_like(lengths) if starts is None else torch.tensor(starts).to(lengths)
    wanted = (position < lengths[:, None]) & (position >= first[:, None])
    return (picked * wanted).sum(-1), wanted.sum(-1)


def cross_entropy(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    spent: Spent,
    starts: Sequence[int] | None = None,
) -> Tensor:
    """Mean negative log-likelihood per predicted token of a batch of texts."""
    found, counts = log_likelihoods(model, rows, starts, spent)
    return -found.sum() / counts.sum().clamp_min(1)


def finetune(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    which: Which = "full",
    training: Training | None = None,
    spent: Spent | None = None,
) -> Delta:
    """Fine-tune on texts by cross-entropy of the next token; the model is left as it was."""
    training = training or Training()
    spent = spent or Spent()
    rows = encode(model, tokenizer, texts, training.max_tokens)
    spent.labels += len(texts)
    sampler = Sampler(len(rows), training.batch, training.seed)
    with tuned(model, which, training.seed) as part:
        losses = optimise(
            part.parameters.values(),
            lambda _: cross_entropy(model, [rows[i] for i in sampler.draw()], spent),
            training,
        )
        return Delta(part.change(), losses)


@dataclass(frozen=True)
class Course(Lesson):
    """A lesson with gradients: how to train, and what that has used so far."""

    training: Training = field(default_factory=Training)
    spent: Spent = field(default_factory=Spent)

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, which are counted as read."""
        self.spent.labels += len(texts)
        return encode(self.model, self.tokenizer, texts, self.training.max_tokens)

    def sampler(self, rows: Sequence[Any]) -> Sampler:
        """Draws batches of these."""
        return Sampler(len(rows), self.training.batch, self.training.seed)

    def train(self, part: Tuned, loss: Callable[[int], Tensor]) -> Delta:
        """The change that training the opened part on `loss(step)` leaves."""
        losses = optimise(part.parameters.values(), loss, self.training)
        return Delta(part.change(), losses)

    def finetune(self, texts: Sequence[str], which: Which = "full") -> Delta:
        """The change that makes texts likelier."""
        return finetune(
            self.model,
            self.tokenizer,
            texts,
            which=which,
            training=self.training,
            spent=self.spent,
        )


class Trained(Method[Result]):
    """A method with settings of training: those given to `fit` replace its own."""

    training: Training

    def take(self, lesson: Lesson, fixed: Mapping[str, Any]) -> Result:
        """Train. UserError where there are no texts to train on."""
        course, rest = course_of(lesson, self.training, fixed)
        return self.learn(course, **rest)


@dataclass(frozen=True)
class FittedDelta:
    """A method whose result is a change of weights, added `sign` times the strength."""

    delta: Delta
    spent: Spent
    sign: float = 1.0

    def applied(self, model: PreTrainedModel, strength: float) -> AbstractContextManager[Any]:
        """The same model with the change at this strength; every bit restored after."""
        return self.delta.applied(model, self.sign * strength)

    def cost(self, **_: Any) -> Cost:
        """What fitting took, and how many weights differ."""
        return self.spent.price(self.delta.touched)


@dataclass(frozen=True)
class WeightBaseline(Taught[FittedDelta]):
    """A trained method: `learn(course, **fixed)` gives its delta.

    Settings of `fit` that are fields of `Training` replace its own; the others go to `learn`.
    """

    name: str
    learn: Callable[..., Delta]
    training: Training
    sign: float = 1.0
    knobs: Mapping[str, SearchRange] = field(
        default_factory=lambda: {"strength": strength_range(1.0, high=3.0)}
    )
    kind: Kind = "weights"

    def take(self, lesson: Lesson, fixed: Mapping[str, Any]) -> FittedDelta:
        """Train. UserError where there are no texts to train on."""
        course, rest = course_of(lesson, self.training, fixed)
        return FittedDelta(self.learn(course, **rest), course.spent, self.sign)


def course_of(
    lesson: Lesson, training: Training, fixed: Mapping[str, Any]
) -> tuple[Course, dict[str, Any]]:
    """The lesson with its training, as `fixed` changes it, and the settings that remain."""
    own = {field.name for field in dataclasses.fields(Training)}
    changed = {name: value for name, value in fixed.items() if name in own}
    rest = {name: value for name, value in fixed.items() if name not in own}
    training = dataclasses.replace(training, seed=lesson.seed, **changed)
    return Course(lesson.model, lesson.tokenizer, lesson.data, lesson.seed, training), rest

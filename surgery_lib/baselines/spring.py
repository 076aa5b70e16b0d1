"""SPRING-style virtual tokens: trained embeddings before the text, the weights untouched.

Zhu et al. 2025 (arXiv 2405.19670): the number of tokens is drawn anew at every step, so that the
first k of them work for any k. The same `SoftPrompt` steers towards a behaviour where it is trained
on texts that show it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgery_lib.baselines.base import Cost, Knob, strength_knob
from surgery_lib.baselines.training import (
    Course,
    Spent,
    Trained,
    Training,
    cross_entropy,
    optimise,
)
from surgery_lib.baselines.tuning import frozen
from surgery_lib.errors import UserError

LENGTH = 20  # virtual tokens


@dataclass(frozen=True)
class SoftPrompt:
    """Embeddings (tokens, width) that stand before whatever the model reads."""

    embeddings: Tensor
    losses: Sequence[float] = ()

    @contextmanager
    def applied(self, model: Any, k: int | None = None) -> Iterator[Any]:
        """The same model, reading the first k virtual tokens (default all) before every text.

        Logits and hidden states of the virtual tokens themselves are left out, so that shapes are
        as without; generation with a cache, padding on either side and plain forward passes work.
        k = 0 is the model itself. UserError for a k that there is not.
        """
        k = len(self.embeddings) if k is None else k
        if not 0 <= k <= len(self.embeddings):
            raise UserError(f"k = {k}, but there are {len(self.embeddings)} virtual tokens")
        with prepended(model, self.embeddings[:k]):
            yield model

    def price(self, spent: Spent, **rest: Any) -> Cost:
        """The cost of having trained it, which no checkpoint of the model's own form holds."""
        return spent.price(self.embeddings.numel(), ordinary_checkpoint=False, **rest)


@contextmanager
def prepended(model: Any, embeddings: Tensor) -> Iterator[None]:
    """Hooks on the base model that put embeddings (k, width) before the first token it reads."""
    base = model.base_model
    k = len(embeddings)
    if k == 0:
        yield
        return
    fresh = False

    def before(_module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        nonlocal fresh
        given = dict(given)
        ids = args[0] if args else given.pop("input_ids", None)
        embedded = given.pop("inputs_embeds", None)
        if embedded is None:
            embedded = base.get_input_embeddings()(ids)
        texts, width = embedded.shape[:2]
        cache = given.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        fresh = seen == 0
        mask = given.get("attention_mask")
        if mask is None:
            # The cache counts the virtual tokens once they are in it.
            mask = embedded.new_ones(texts, width + max(0, seen - k), dtype=torch.long)
        mask = torch.cat([mask.new_ones(texts, k), mask], dim=1)
        if fresh:
            virtual = embeddings.to(embedded).expand(texts, -1, -1)
            embedded = torch.cat([virtual, embedded], dim=1)
        places = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -embedded.shape[1] :]
        given.update(inputs_embeds=embedded, attention_mask=mask, position_ids=places)
        given.pop("cache_position", None)
        return (), given

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if fresh:
            output.last_hidden_state = output.last_hidden_state[:, k:]
            if getattr(output, "hidden_states", None) is not None:
                output.hidden_states = tuple(states[:, k:] for states in output.hidden_states)
        return output

    handles = [
        base.register_forward_pre_hook(before, with_kwargs=True),
        base.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train(course: Course, texts: Sequence[str], *, length: int = LENGTH) -> SoftPrompt:
    """Virtual tokens that make the texts likelier, the model frozen.

    They start as the embeddings of tokens of the texts themselves. `length` is how many.
    """
    model, rows = course.model, course.rows(texts)
    generator = torch.Generator().manual_seed(course.training.seed)
    sampler = course.sampler(rows)
    words = itertools.cycle(token for ids in rows for token in ids[1:])
    start = torch.tensor(list(itertools.islice(words, length)))
    weight = model.get_input_embeddings().weight
    with frozen(model):
        virtual = nn.Parameter(weight.detach()[start.to(weight.device)].float().clone())

        def step(_: int) -> Tensor:
            k = int(torch.randint(1, length + 1, (1,), generator=generator))
            with prepended(model, virtual[:k]):
                return cross_entropy(model, [rows[i] for i in sampler.draw()], course.spent)

        losses = optimise([virtual], step, course.training)
    return SoftPrompt(virtual.detach(), losses)


@dataclass(frozen=True)
class FittedPrompt:
    """Virtual tokens of which the share `strength` is used, the first ones."""

    prompt: SoftPrompt
    spent: Spent

    def count(self, strength: float) -> int:
        """How many virtual tokens a strength is; all of them at 1 and beyond."""
        length = len(self.prompt.embeddings)
        return min(length, max(0, round(strength * length)))

    def applied(self, model: Any, strength: float) -> AbstractContextManager[Any]:
        """The same model with virtual tokens before every text; no weight is touched."""
        return self.prompt.applied(model, self.count(strength))

    def cost(self, **_: Any) -> Cost:
        """What fitting took; with a cache, each text reads the virtual tokens only once."""
        return self.prompt.price(self.spent)


class Spring(Trained[FittedPrompt], name="spring", kind="tokens"):
    """Virtual tokens trained on texts without the behaviour."""

    training = Training(steps=100, lr=1e-2)
    knobs: ClassVar[Mapping[str, Knob]] = {"strength": strength_knob(1.0, high=1.0, low=0.05)}

    def learn(self, course: Course, length: int = LENGTH) -> FittedPrompt:
        """Train the virtual tokens; `length` is how many."""
        return FittedPrompt(train(course, course.data.of(0), length=length), course.spent)


SPRING = Spring()

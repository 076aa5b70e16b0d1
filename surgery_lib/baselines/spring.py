"""SPRING-style virtual tokens: trained embeddings before the text, the weights untouched.

Zhu et al. 2025 (arXiv 2405.19670): the number of tokens is drawn anew at every step, so that the
first k of them work for any k. The same `SoftPrompt` steers towards a behaviour where it is trained
on texts that show it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib.baselines.base import Cost, Kind, Knob, Labelled
from surgery_lib.baselines.training import (
    Sampler,
    Spent,
    Training,
    cross_entropy,
    encode,
    optimise,
    with_settings,
)
from surgery_lib.baselines.tuning import frozen
from surgery_lib.errors import UserError


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


def train(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    length: int = 20,
    training: Training | None = None,
    spent: Spent | None = None,
) -> SoftPrompt:
    """Virtual tokens that make the texts likelier, the model frozen.

    They start as the embeddings of tokens of the texts themselves. `length` is how many.
    """
    training, spent = training or Training(lr=1e-2), spent or Spent()
    rows = encode(model, tokenizer, texts, training.max_tokens)
    spent.labels += len(texts)
    generator = torch.Generator().manual_seed(training.seed)
    sampler = Sampler(len(rows), training.batch, training.seed)
    words = itertools.cycle(token for ids in rows for token in ids[1:])
    start = torch.tensor(list(itertools.islice(words, length)))
    weight = model.get_input_embeddings().weight
    with frozen(model):
        virtual = nn.Parameter(weight.detach()[start.to(weight.device)].float().clone())

        def step(_: int) -> Tensor:
            k = int(torch.randint(1, length + 1, (1,), generator=generator))
            with prepended(model, virtual[:k]):
                return cross_entropy(model, [rows[i] for i in sampler.draw()], spent)

        losses = optimise([virtual], step, training)
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
        return Cost(
            labels=self.spent.labels,
            forward_tokens=self.spent.forward,
            backward_tokens=self.spent.backward,
            parameters=self.prompt.embeddings.numel(),
            needs_gradients=True,
            ordinary_checkpoint=False,
        )


@dataclass(frozen=True)
class Spring:
    """Virtual tokens trained on texts without the behaviour."""

    name: str = "spring"
    kind: Kind = "tokens"
    training: Training = field(default_factory=lambda: Training(steps=100, lr=1e-2))
    knobs: Mapping[str, Knob] = field(
        default_factory=lambda: {"strength": Knob(1.0, low=0.05, high=1.0, log=True, bounded=True)}
    )

    def fit(
        self, model: Any, tokenizer: Any, data: Labelled, *, seed: int = 0, **fixed: Any
    ) -> FittedPrompt:
        """Train the virtual tokens; `length` is how many."""
        training, fixed = with_settings(self.training, seed, fixed)
        spent = Spent()
        prompt = train(model, tokenizer, data.of(0), training=training, spent=spent, **fixed)
        return FittedPrompt(prompt, spent)


SPRING = Spring()

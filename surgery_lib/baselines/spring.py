"""SPRING-style virtual tokens: trained embeddings before the prompt, the weights untouched.

Zhu et al. 2025 (arXiv 2405.19670): trained on prompt and completion, by the likelihood of the
completion alone; the number of tokens is drawn anew at every step, so that the first k of them work
for any k. They stand where a text begins, after its start token. (The paper has them between
passages and question, where there are such: `diagnostics.retrieval`.) The same `SoftPrompt` steers
towards a behaviour where it is trained on completions that show it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import pairs
from surgery_lib.baselines.base import Cost, SearchRange
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

# Of a few dozen completions: more steps learn these by heart, and others get no likelier.
STEPS = 60
LEARNING_RATE = 3e-2
LENGTH = 20  # virtual tokens


@dataclass(frozen=True)
class SoftPrompt:
    """Embeddings (tokens, width) that stand before whatever the model reads."""

    embeddings: Tensor
    losses: Sequence[float] = ()

    @contextmanager
    def applied(self, model: PreTrainedModel, k: int | None = None) -> Iterator[Any]:
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
def prepended(model: PreTrainedModel, embeddings: Tensor) -> Iterator[None]:
    """Hooks on the base model that put embeddings (k, width) where each text it reads begins.

    That is after the start token, where there is one, and after padding on the left.
    """
    base = model.base_model
    k = len(embeddings)
    if k == 0:
        yield
        return
    fresh, at = False, torch.empty(0)

    def before(_module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        nonlocal fresh, at
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
        at = _begins(mask, ids, base.config) if fresh else _found(cache)
        mask = _inserted(mask, mask.new_ones(k), at)
        if fresh:
            embedded = _inserted(embedded, embeddings.to(embedded), at)
        places = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -embedded.shape[1] :]
        given.update(inputs_embeds=embedded, attention_mask=mask, position_ids=places)
        given.pop("cache_position", None)
        return (), given

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if fresh:
            output.last_hidden_state = _without(output.last_hidden_state, k, at)
            if getattr(output, "hidden_states", None) is not None:
                output.hidden_states = tuple(_without(one, k, at) for one in output.hidden_states)
            if getattr(output, "past_key_values", None) is not None:
                # Whoever goes on from this cache must know where the virtual tokens are in it.
                output.past_key_values.virtual_tokens_at = at
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


def _found(cache: Any) -> Tensor:
    """Where the virtual tokens are in a cache. UserError where they are not."""
    at: Tensor | None = getattr(cache, "virtual_tokens_at", None)
    if at is None:
        raise UserError("virtual tokens must be there from a text's start; read it anew with them")
    return at


def _begins(mask: Tensor, ids: Tensor | None, config: Any) -> Tensor:
    """Where the text of each row begins, past padding and the start token: (texts,)."""
    padding = (mask.long().cumsum(1) == 0).sum(1)
    start = getattr(config, "bos_token_id", None)
    if ids is None or start is None:
        return padding
    first = ids.gather(1, padding.clamp_max(ids.shape[1] - 1)[:, None].to(ids.device))[:, 0]
    return padding + (first == start).to(padding)


def _inserted(values: Tensor, new: Tensor, at: Tensor) -> Tensor:
    """Rows (texts, width, ...) with `new` (k, ...) put in before place `at` (texts,) of each."""
    k, width = len(new), values.shape[1]
    place = torch.arange(width + k, device=values.device).expand(len(values), -1)
    at = at.to(values.device)[:, None]
    old = torch.where(place < at, place, place - k).clamp(0, width - 1)
    row = torch.arange(len(values), device=values.device)[:, None]
    inside = (place >= at) & (place < at + k)
    inside = inside.reshape(*inside.shape, *[1] * (values.dim() - 2))
    return torch.where(inside, new[(place - at).clamp(0, k - 1)], values[row, old])


def _without(values: Tensor, k: int, at: Tensor) -> Tensor:
    """Rows (texts, width, ...) less the k places from `at` (texts,) on."""
    place = torch.arange(values.shape[1] - k, device=values.device)
    row = torch.arange(len(values), device=values.device)[:, None]
    return values[row, place + k * (place >= at.to(values.device)[:, None])]


def train(
    course: Course,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    *,
    length: int = LENGTH,
    any_k: bool = True,
) -> SoftPrompt:
    """Virtual tokens that make completions likelier after their prompts, the model frozen.

    Row i is a prompt's token ids and, from `starts[i]` on, its completion's: these alone are
    predicted. The tokens start as the embeddings of completions' own. `length` is how many; with
    `any_k` the first k of them are trained at each step, k drawn anew, without it all of them.
    """
    model, spent = course.model, course.spent
    generator = torch.Generator().manual_seed(course.training.seed)
    sampler = course.sampler(rows)
    words = itertools.cycle([t for ids, n in zip(rows, starts, strict=True) for t in ids[n:]])
    start = torch.tensor(list(itertools.islice(words, length)))
    weight = model.get_input_embeddings().weight
    with frozen(model):
        virtual = nn.Parameter(weight.detach()[start.to(weight.device)].float().clone())

        def step(_: int) -> Tensor:
            k = int(torch.randint(1, length + 1, (1,), generator=generator)) if any_k else length
            drawn = sampler.draw()
            with prepended(model, virtual[:k]):
                return cross_entropy(
                    model, [rows[i] for i in drawn], spent, [starts[i] for i in drawn]
                )

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

    def applied(self, model: PreTrainedModel, strength: float) -> AbstractContextManager[Any]:
        """The same model with virtual tokens before every text; no weight is touched."""
        return self.prompt.applied(model, self.count(strength))

    def cost(self, **_: Any) -> Cost:
        """What fitting took; with a cache, each text reads the virtual tokens only once."""
        return self.prompt.price(self.spent)


class Spring(Trained[FittedPrompt], name="spring", kind="tokens"):
    """Virtual tokens trained on completions without the behaviour."""

    training = Training(steps=STEPS, lr=LEARNING_RATE)
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.05, high=1.0, log=True, bounded=True)
    }

    def learn(self, course: Course, length: int = LENGTH, **making: Any) -> FittedPrompt:
        """Train `length` virtual tokens; `making` goes to the pairs."""
        found = pairs.make(course, **making)
        rows, starts = [pair.chosen for pair in found], [pair.start for pair in found]
        return FittedPrompt(train(course, rows, starts, length=length), course.spent)


SPRING = Spring()

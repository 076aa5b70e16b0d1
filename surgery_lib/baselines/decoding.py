"""Decoding methods as changes of the logits, in generation and in a plain forward pass alike.

A hook on the model's output replaces its logits, so that `generate`, perplexity and divergences
all see the distribution that the method samples from. The published rules drop every token outside
a candidate set; dropping is a setting of sampling that all methods can be given, and would make
every divergence infinite. So candidates share among themselves the probability that they have in
the base model, and the other tokens keep theirs: strength 0 is the base model exactly.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from surgery_lib.errors import UserError


@dataclass(frozen=True)
class Call:
    """One forward pass of the base model: (texts, new) tokens after `past` cached ones.

    `logits` (texts, positions, vocabulary) are of the last `positions` of the new tokens. `mask`
    (texts, past + new) and `positions` (texts, new) are as given, None where they were not.
    """

    ids: Tensor
    logits: Tensor
    past: int
    cache: Any
    mask: Tensor | None
    positions: Tensor | None


Rule = Callable[[Call], Tensor]


class Steered(ABC):
    """A fitted decoding method: `change` gives the rule for the logits, at strengths above 0."""

    cached: ClassVar[bool] = False

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float, **knobs: Any) -> Iterator[Any]:
        """The model whose logits are those that the method samples from."""
        if strength == 0:
            yield model
            return
        with processed(model, self.change(model, strength, **knobs), cached=self.cached):
            yield model

    @abstractmethod
    def change(self, model: PreTrainedModel, strength: float, *args: Any, **knobs: Any) -> Rule:
        """What a call's logits become; its knobs are those of the method."""


@contextmanager
def processed(model: PreTrainedModel, change: Rule, *, cached: bool = False) -> Iterator[Any]:
    """The model with `change` between its logits and whoever reads them.

    `cached` makes every call keep its keys and values, for rules that continue from them.
    """

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "use_cache": True}

    def after(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UserError("a decoding method needs input_ids; it cannot start from embeddings")
        if not hasattr(output, "logits"):
            raise UserError("a decoding method needs return_dict=True; leave it as it is")
        cache = output.past_key_values if "past_key_values" in output else None
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        past = 0 if cache is None else cache.get_seq_length() - ids.shape[1]
        call = Call(ids, output.logits, past, cache, mask, kwargs.get("position_ids"))
        output.logits = change(call).to(output.logits.dtype)
        if output.get("loss") is not None:
            labels = kwargs["labels"]
            output.loss = model.loss_function(output.logits, labels, output.logits.shape[-1])

    handles = [model.register_forward_hook(after, with_kwargs=True)]
    if cached:
        handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


class Companion:
    """Another model that reads along, with a cache of its own beside each of the base's.

    `run(call, cache)` returns the other model's logits for the same new tokens, as many positions
    as the base's.
    """

    def __init__(self, run: Callable[[Call, Any], Tensor]) -> None:
        self.run = run
        self.caches: weakref.WeakKeyDictionary[Any, tuple[int, Any]] = weakref.WeakKeyDictionary()

    @torch.no_grad()
    def logits(self, call: Call) -> Tensor:
        """Logits (texts, positions, vocabulary) in float32."""
        cache = None
        if call.cache is not None:
            length, cache = self.caches.get(call.cache, (0, None))
            if length != call.past:
                raise UserError(
                    "a decoding method must read a text from its start; generate inside the with "
                    "block, without beam search or a cache from outside"
                )
            cache = DynamicCache() if cache is None else cache
            self.caches[call.cache] = (length + call.ids.shape[1], cache)
        return self.run(call, cache).float()


def companion(model: PreTrainedModel) -> Companion:
    """A companion that is an ordinary causal language model with the same vocabulary."""

    def run(call: Call, cache: Any) -> Tensor:
        options = {} if call.positions is None else {"position_ids": call.positions}
        logits: Tensor = model(
            input_ids=call.ids,
            attention_mask=call.mask,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=call.logits.shape[1],
            **options,
        ).logits
        return logits

    return Companion(run)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The fewest most likely tokens that together have probability `top_p`: bool, like logits.

    The most likely token always belongs.
    """
    probabilities, order = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)


def shared(base: Tensor, changed: Tensor, among: Tensor) -> Tensor:
    """Log-probabilities of the base, but `among` the candidates in proportion to exp(changed).

    All are (..., vocabulary); `among` is bool. The candidates together keep their probability.
    """
    base = base.float().log_softmax(-1)
    inside = torch.where(among, changed.float(), -torch.inf).log_softmax(-1)
    mass = torch.where(among, base, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.where(among, inside + mass, base)

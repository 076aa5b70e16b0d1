"""What a surgery changes that it should not: perplexity, and the divergence from the base model.

Clean text alone hides damage, so the divergence is also measured inside the contexts that trigger
the behaviour. And the first token alone hides what comes after it, so the base's own greedy
continuations of harmless and of triggering prompts are read again, token by token. Everything of
the base model is computed once, and each edited variant is compared with it:
`reference = Reference(model, tokenizer, ...)`, then `reference.compare(model)` inside
`with surgery.applied(model)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.evaluation.divergence import (
    Row,
    content,
    greedy,
    kept_tails,
    tail_batches,
    tails,
)
from surgery_lib.evaluation.perplexity import Perplexity, perplexity
from surgery_lib.evaluation.statistics import Estimate, interval, mean
from surgery_lib.models.generation import encode
from surgery_lib.models.head import kl

__all__ = ["PARTS", "Damage", "Reference", "first_token_kl", "first_token_logprobs", "perplexity"]

# What can be compared; `first`, `context` and `continuation` are divergences.
PARTS = ("first", "context", "continuation", "perplexity")
# Tokens of the base's own continuation that are followed, and of how many prompts of each kind.
FOLLOWED = 20
FOLLOWED_PROMPTS = 64


@torch.inference_mode()
def first_token_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tokens_per_batch: int = 8192,
) -> torch.Tensor:
    """Log-probabilities (n, vocabulary), float32, of the first token after each prompt."""
    rows = encode(model, tokenizer, prompts, 1, truncate=True)
    return tails(model, [(ids, 1) for ids in rows], tokens_per_batch, ahead=True)


def first_token_kl(base: torch.Tensor, edited: torch.Tensor) -> np.ndarray:
    """KL(base ‖ edited) in nats of each row (n,) of log-probabilities (n, vocabulary)."""
    return kl(base, edited).numpy()


@dataclass(frozen=True)
class Damage:
    """One edited variant against the base; a part that was not measured is None.

    `items` holds, for paired tests, the numbers of each prompt, pair or window.
    """

    first_token_kl: Estimate | None
    context_kl: Estimate | None
    context_accuracy: dict[str, float] | None
    perplexity: Perplexity | None
    perplexity_ratio: dict[str, float] | None
    items: dict[str, np.ndarray]
    continuation_kl: Estimate | None = None
    trigger_continuation_kl: Estimate | None = None

    @property
    def perplexity_rise(self) -> float:
        """Relative rise of clean perplexity against the base; 0 where it was not read."""
        return self.perplexity_ratio["value"] - 1 if self.perplexity_ratio is not None else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, without the items."""
        parts = {
            "first_token_kl": self.first_token_kl,
            "context_kl": self.context_kl,
            "continuation_kl": self.continuation_kl,
            "trigger_continuation_kl": self.trigger_continuation_kl,
            "perplexity": self.perplexity,
        }
        found = {name: part.as_dict() for name, part in parts.items() if part is not None}
        if self.perplexity_ratio is not None:
            found["perplexity_ratio"] = self.perplexity_ratio
        if self.context_accuracy is not None:
            found["context_accuracy"] = self.context_accuracy
        return found


class Reference:
    """What the base model says, to compare edited variants with.

    Args:
        benign: Harmless prompts, for the divergence of the first token and of the continuation.
        triggers: Prompts that trigger the behaviour, for the divergence of the continuation. Where
            the behaviour is gone this one is large, as it should be: it says how much changed.
        contexts: Pairs of triggering context and content that follows; the divergence is averaged
            over the content's tokens.
        clean: Harmless prose, joined, for perplexity; further arguments as in `perplexity`.
        continuation: Tokens of the base's greedy continuation to follow, of the first
            `FOLLOWED_PROMPTS` harmless and triggering prompts; 0 for none.

    Raises:
        UserError: A text exceeds the model's context, or a pair has no content.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        benign: Sequence[str] = (),
        triggers: Sequence[str] = (),
        contexts: Sequence[tuple[str, str]] = (),
        clean: Sequence[str] = (),
        window: int = 256,
        stride: int | None = None,
        bos: bool | None = None,
        limit: int | None = None,
        continuation: int = FOLLOWED,
        tokens_per_batch: int = 8192,
        progress: bool = False,
    ):
        self.tokenizer = tokenizer
        self.clean = list(clean)
        self.tokens_per_batch = tokens_per_batch
        self.reading: dict[str, Any] = {
            "window": window,
            "stride": stride,
            "bos": bos,
            "limit": limit,
            "tokens_per_batch": tokens_per_batch,
            "progress": progress,
        }
        self.benign = [(ids, 1) for ids in encode(model, tokenizer, benign, 1, truncate=True)]
        self.pairs = content(model, tokenizer, contexts) if contexts else []
        with torch.inference_mode():
            self.first = self._first(model) if self.benign else None
            self.content = kept_tails(model, self.pairs, tokens_per_batch) if self.pairs else []
        self.followed: dict[str, tuple[list[Row], list[torch.Tensor]]] = {}
        for name, prompts in (
            ("continuation_kl", benign),
            ("trigger_continuation_kl", triggers),
        ):
            if prompts and continuation:
                some = list(prompts)[:FOLLOWED_PROMPTS]
                rows = greedy(
                    model, tokenizer, some, continuation, tokens_per_batch=tokens_per_batch
                )
                self.followed[name] = rows, kept_tails(model, rows, tokens_per_batch)
        self.perplexity = self._perplexity(model, True) if self.clean else None

    def _first(self, model: PreTrainedModel) -> torch.Tensor:
        return tails(model, self.benign, self.tokens_per_batch, ahead=True)

    def _perplexity(self, model: PreTrainedModel, intervals: bool) -> Perplexity:
        return perplexity(model, self.tokenizer, self.clean, intervals=intervals, **self.reading)

    @torch.inference_mode()
    def compare(
        self, model: PreTrainedModel, *, parts: Sequence[str] = PARTS, intervals: bool = True
    ) -> Damage:
        """Measure the model as it now is; `parts` and `intervals=False` keep sweeps cheap."""
        items: dict[str, np.ndarray] = {}
        first = context = accuracy = text = ratio = None
        if self.first is not None and "first" in parts:
            items["first_token_kl"] = first_token_kl(self.first, self._first(model))
            first = _estimate(items["first_token_kl"], intervals)
        if self.pairs and "context" in parts:
            context, accuracy = self._compare_inside(model, items, intervals)
        followed: dict[str, Estimate] = {}
        if "continuation" in parts:
            followed = {n: self._follow(model, n, items, intervals) for n in self.followed}
        if self.perplexity is not None and "perplexity" in parts:
            text = self._perplexity(model, intervals)
            items["nll"] = text.nll
            ratio = {"value": text.value / self.perplexity.value}
            if intervals:
                ratio = self.perplexity.ratio(text)
        return Damage(first, context, accuracy, text, ratio, items, **followed)

    def _compare_inside(
        self, model: PreTrainedModel, items: dict[str, np.ndarray], intervals: bool
    ) -> tuple[Estimate, dict[str, float]]:
        total, count = np.zeros(len(self.pairs)), np.zeros(len(self.pairs))
        right = np.zeros((2, len(self.pairs)))
        for i, edited in tail_batches(model, self.pairs, self.tokens_per_batch, ahead=False):
            base = self.content[i]
            target = torch.tensor(self.pairs[i][0][-len(edited) :])
            total[i], count[i] = float(kl(base, edited).sum()), len(edited)
            right[:, i] = [bool((rows.argmax(-1) == target).all()) for rows in (base, edited)]
        items |= {"context_kl": total / count, "context_right": right[1]}
        items["context_right_base"] = right[0]
        estimate = _per_token(total, count, intervals, "bootstrap over pairs")
        rates = {"base": float(right[0].mean()), "edited": float(right[1].mean())}
        return estimate, rates

    def _follow(
        self, model: PreTrainedModel, name: str, items: dict[str, np.ndarray], intervals: bool
    ) -> Estimate:
        """Mean divergence of a token along the base's continuations, teacher-forced."""
        rows, bases = self.followed[name]
        total, count = np.zeros(len(rows)), np.array([float(many) for _, many in rows])
        for i, edited in tail_batches(model, rows, self.tokens_per_batch, ahead=False):
            total[i] = float(kl(bases[i], edited).sum())
        items[name] = total / count
        return _per_token(total, count, intervals, "bootstrap over prompts")


def _estimate(values: np.ndarray, intervals: bool) -> Estimate:
    if intervals:
        return mean(values)
    value = float(values.mean())
    return Estimate(value, value, value, len(values), "no interval")


def _per_token(total: np.ndarray, count: np.ndarray, intervals: bool, method: str) -> Estimate:
    """Sum of `total` over the tokens counted, both (items,); the interval draws items."""
    value = float(total.sum() / count.sum())
    low = high = value
    if intervals:
        low, high = interval(
            lambda t, c, axis=-1: t.sum(axis=axis) / c.sum(axis=axis), [total, count]
        )
    return Estimate(value, low, high, len(total), method)

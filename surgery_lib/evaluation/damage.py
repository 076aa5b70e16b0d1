"""What a surgery changes that it should not: perplexity, and the divergence from the base model.

Clean text alone hides damage, so the divergence is also measured inside the contexts that trigger
the behaviour. Everything of the base model is computed once, and each edited variant is compared
with it: `reference = Reference(model, tokenizer, ...)`, then `reference.compare(model)` inside
`with surgery.applied(model)`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.errors import UserError
from surgery_lib.evaluation.perplexity import Perplexity, forward, perplexity, rows_per_batch
from surgery_lib.evaluation.statistics import Estimate, interval, mean
from surgery_lib.models.activations import batches
from surgery_lib.models.generation import encode, left_pad

__all__ = ["Damage", "Reference", "first_token_kl", "first_token_logprobs", "perplexity"]

# Base log-probabilities inside contexts are kept in half precision beyond this many numbers.
FULL_PRECISION = 2**28


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
    return _tails(model, [(ids, 1) for ids in rows], tokens_per_batch, ahead=True)


def first_token_kl(base: torch.Tensor, edited: torch.Tensor) -> np.ndarray:
    """KL(base ‖ edited) in nats of each row (n,) of log-probabilities (n, vocabulary)."""
    return _kl(base, edited).numpy()


def _kl(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    base = base.float()
    # A token that the base never gives adds nothing, whatever the edited model says of it.
    terms = torch.where(base == -torch.inf, 0.0, base.exp() * (base - edited))
    return terms.sum(-1).clamp_min(0.0)


def _tail_batches(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], int]],
    tokens_per_batch: int,
    ahead: bool,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Row number and log-probabilities (count, vocabulary) of each row's last `count` tokens.

    With `ahead`, of the token that comes after the row instead.
    """
    lengths = [len(ids) for ids, _ in rows]
    longest, kept = max(lengths), max(count for _, count in rows) + 1
    budget = rows_per_batch(model, longest, kept, tokens_per_batch) * longest
    for group in batches(lengths, budget):
        ids, mask = left_pad([rows[i][0] for i in group], 0)
        keep = max(rows[i][1] for i in group) + (not ahead)
        logits = forward(model, ids, mask, keep)
        for place, i in enumerate(group):
            count = rows[i][1]
            own = logits[place, -count:] if ahead else logits[place, -count - 1 : -1]
            yield i, own.float().log_softmax(-1).cpu()


def _tails(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], int]],
    tokens_per_batch: int,
    ahead: bool,
) -> torch.Tensor:
    found = dict(_tail_batches(model, rows, tokens_per_batch, ahead))
    return torch.cat([found[i] for i in range(len(rows))])


def _content(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], int]]:
    """Ids of context and content together, and how many tokens at the end are content."""
    whole = encode(model, tokenizer, [context + content for context, content in pairs], 0)
    heads = tokenizer([context for context, _ in pairs])["input_ids"]
    found = []
    for number, (ids, head) in enumerate(zip(whole, heads, strict=True)):
        # A token may span the border; it then belongs to the content.
        common = next(
            (i for i, (a, b) in enumerate(zip(ids, head, strict=False)) if a != b),
            min(len(ids), len(head)),
        )
        if len(ids) - max(common, 1) < 1:
            raise UserError(f"pair {number} of context and content has no content; drop it")
        found.append((ids, len(ids) - max(common, 1)))
    return found


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

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, without the items."""
        parts = {
            "first_token_kl": self.first_token_kl,
            "context_kl": self.context_kl,
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
        benign: Harmless prompts, for the divergence of the first token.
        contexts: Pairs of triggering context and content that follows; the divergence is averaged
            over the content's tokens.
        clean: Harmless prose, joined, for perplexity; further arguments as in `perplexity`.

    Raises:
        UserError: A text exceeds the model's context, or a pair has no content.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        benign: Sequence[str] = (),
        contexts: Sequence[tuple[str, str]] = (),
        clean: Sequence[str] = (),
        window: int = 256,
        stride: int | None = None,
        bos: bool | None = None,
        limit: int | None = None,
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
        self.pairs = _content(model, tokenizer, contexts) if contexts else []
        with torch.inference_mode():
            self.first = self._first(model) if self.benign else None
            self.content = self._inside(model) if self.pairs else []
        self.perplexity = self._perplexity(model, True) if self.clean else None

    def _first(self, model: PreTrainedModel) -> torch.Tensor:
        return _tails(model, self.benign, self.tokens_per_batch, ahead=True)

    def _inside(self, model: PreTrainedModel) -> list[torch.Tensor]:
        vocabulary = model.get_output_embeddings().weight.shape[0]
        large = sum(count for _, count in self.pairs) * vocabulary > FULL_PRECISION
        kept = torch.float16 if large else torch.float32
        tails = _tail_batches(model, self.pairs, self.tokens_per_batch, ahead=False)
        found = {i: rows.to(kept) for i, rows in tails}
        return [found[i] for i in range(len(self.pairs))]

    def _perplexity(self, model: PreTrainedModel, intervals: bool) -> Perplexity:
        return perplexity(model, self.tokenizer, self.clean, intervals=intervals, **self.reading)

    @torch.inference_mode()
    def compare(
        self,
        model: PreTrainedModel,
        *,
        parts: Sequence[str] = ("first", "context", "perplexity"),
        intervals: bool = True,
    ) -> Damage:
        """Measure the model as it now is; `parts` and `intervals=False` keep sweeps cheap."""
        items: dict[str, np.ndarray] = {}
        first = context = accuracy = text = ratio = None
        if self.first is not None and "first" in parts:
            items["first_token_kl"] = first_token_kl(self.first, self._first(model))
            first = _estimate(items["first_token_kl"], intervals)
        if self.pairs and "context" in parts:
            context, accuracy = self._compare_inside(model, items, intervals)
        if self.perplexity is not None and "perplexity" in parts:
            text = self._perplexity(model, intervals)
            items["nll"] = text.nll
            ratio = {"value": text.value / self.perplexity.value}
            if intervals:
                ratio = self.perplexity.ratio(text)
        return Damage(first, context, accuracy, text, ratio, items)

    def _compare_inside(
        self, model: PreTrainedModel, items: dict[str, np.ndarray], intervals: bool
    ) -> tuple[Estimate, dict[str, float]]:
        total, count = np.zeros(len(self.pairs)), np.zeros(len(self.pairs))
        right = np.zeros((2, len(self.pairs)))
        tails = _tail_batches(model, self.pairs, self.tokens_per_batch, ahead=False)
        for i, edited in tails:
            base = self.content[i]
            target = torch.tensor(self.pairs[i][0][-len(edited) :])
            total[i], count[i] = float(_kl(base, edited).sum()), len(edited)
            right[:, i] = [bool((rows.argmax(-1) == target).all()) for rows in (base, edited)]
        items |= {"context_kl": total / count, "context_right": right[1]}
        items["context_right_base"] = right[0]
        value = float(total.sum() / count.sum())
        low = high = value
        if intervals:
            low, high = interval(
                lambda t, c, axis=-1: t.sum(axis=axis) / c.sum(axis=axis), [total, count]
            )
        estimate = Estimate(value, low, high, len(total), "bootstrap over pairs")
        rates = {"base": float(right[0].mean()), "edited": float(right[1].mean())}
        return estimate, rates


def _estimate(values: np.ndarray, intervals: bool) -> Estimate:
    if intervals:
        return mean(values)
    value = float(values.mean())
    return Estimate(value, value, value, len(values), "no interval")

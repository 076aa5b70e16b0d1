"""Token perplexity in windows, with what is needed to compare base and edited window by window."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import Paired, interval, paired_bootstrap
from surgery_lib.models.generation import context_length
from surgery_lib.models.head import contiguous_head

# Logits held at once, in numbers: 1 GiB in float32.
LOGITS = 2**28


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood a token; `nll` and `tokens` are (windows,).

    `low` and `high` are the 95 % bootstrap interval over windows.
    """

    value: float
    low: float
    high: float
    n: int
    nll: np.ndarray
    tokens: np.ndarray
    window: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: value, interval, windows and tokens."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "tokens": int(self.tokens.sum()),
            "window": self.window,
        }

    def ratio(self, edited: "Perplexity") -> dict[str, float]:
        """Edited over base perplexity with its interval: both are drawn by the same windows."""
        pair = self.change(edited)
        low, high = interval(_log_ratio, [self.nll, edited.nll, self.tokens])
        return {
            "value": edited.value / self.value,
            "low": float(np.exp(low)),
            "high": float(np.exp(high)),
            "p": pair.p,
            "n": self.n,
        }

    def change(self, edited: "Perplexity") -> Paired:
        """Change of the mean negative log-likelihood of a window, paired."""
        return paired_bootstrap(self.nll / self.tokens, edited.nll / edited.tokens)


def _rate(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> Any:
    return nll.sum(axis=axis) / tokens.sum(axis=axis)


def _log_ratio(base: np.ndarray, edited: np.ndarray, tokens: np.ndarray, axis: int = -1) -> Any:
    return (edited - base).sum(axis=axis) / tokens.sum(axis=axis)


def forward(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, keep: int = 0) -> Any:
    """Logits (rows, keep or all, vocabulary); positions are counted without the padding."""
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0).to(model.device)
    if keep and "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    with contiguous_head(model):
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=False,
            **options,
        ).logits
    return logits[:, -keep:] if keep else logits


def rows_per_batch(model: PreTrainedModel, width: int, kept: int, tokens_per_batch: int) -> int:
    """How many rows of `width` tokens fit the budget, logits of `kept` positions included."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return max(1, min(tokens_per_batch // width, LOGITS // (kept * vocabulary)))


def _windows(
    ids: list[int], window: int, stride: int, bos: int | None
) -> list[tuple[list[int], int]]:
    """Token windows and the number of tokens scored at each one's end."""
    found: list[tuple[list[int], int]] = []
    scored_to = 0 if bos is not None else 1
    for begin in range(0, len(ids), stride):
        # The start token is context alone: it takes a place in the window and is never scored.
        part = ids[begin : begin + window - (bos is not None)]
        end = begin + len(part)
        if end > scored_to:
            found.append(([bos, *part] if bos is not None else part, end - scored_to))
        scored_to = max(scored_to, end if stride < window else end + (bos is None))
        if end == len(ids):
            break
    return found


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int = 256,
    stride: int | None = None,
    join: str = "\n\n",
    bos: bool | None = None,
    limit: int | None = None,
    tokens_per_batch: int = 8192,
    intervals: bool = True,
    progress: bool = True,
) -> Perplexity:
    """Perplexity of the texts joined to one, read in windows of `window` tokens.

    Args:
        stride: Tokens from one window's start to the next; without, windows do not overlap.
        bos: Start every window with the start token, as context; by default where the tokenizer
            itself starts texts so. Without it a window's first token is context. The paper's form
            is window=1024, bos=False.
        limit: At most this many windows.

    Raises:
        UserError: A window longer than the model's context, or a text too short to score.
    """
    longest = context_length(model)
    if window < 2 or (longest is not None and window > longest):
        raise UserError(f"a window of {window} tokens; choose from 2 to the context of {longest}")
    plain = tokenizer(join.join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    if bos is None:
        started = tokenizer("a")["input_ids"]
        bos = tokenizer.bos_token_id is not None and started[0] == tokenizer.bos_token_id
    if bos and tokenizer.bos_token_id is None:
        raise UserError("the tokenizer has no start token; measure with bos=False")
    step = stride or window - int(bos)
    parts = _windows(plain, window, step, tokenizer.bos_token_id if bos else None)[: limit or None]
    if not parts:
        raise UserError("the clean text has fewer than two tokens; give more of it")
    size = rows_per_batch(model, window, window, tokens_per_batch)
    losses, counts = [], []
    for start in tqdm(range(0, len(parts), size), disable=not progress, desc="perplexity"):
        group = parts[start : start + size]
        width = max(len(ids) for ids, _ in group)
        # The last window alone can be shorter; on the right, padding changes nothing before it.
        ids = torch.zeros(len(group), width, dtype=torch.long)
        labels = torch.full((len(group), width), -100)
        mask = torch.zeros_like(ids)
        for row, (tokens, scored) in enumerate(group):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, len(tokens) - scored : len(tokens)] = torch.tensor(tokens[-scored:])
        logits = forward(model, ids, mask)[:, :-1].float()
        target = labels[:, 1:].to(logits.device)
        loss = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        losses.append(loss.double().sum(-1).cpu())
        counts.append((target != -100).sum(-1).cpu())
    nll, count = torch.cat(losses).numpy(), torch.cat(counts).numpy().astype(float)
    mean = float(_rate(nll, count))
    low, high = interval(_rate, [nll, count]) if intervals else (mean, mean)
    return Perplexity(
        value=float(np.exp(mean)),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        n=len(nll),
        nll=nll,
        tokens=count,
        window=window,
    )

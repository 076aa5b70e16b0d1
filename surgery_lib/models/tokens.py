"""Texts as token ids, checked, and as padded batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError

LONGEST_TEXT = 1_000_000  # characters


def tokenize(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Token ids of each text, cut after `max_tokens`. UserError for empty texts."""
    check_list(texts, "texts")
    if not texts:
        raise UserError("there are no texts to read; give at least one")
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if context is not None and max_tokens > context:
        raise UserError(
            f"max_tokens is {max_tokens}, but the model's context holds {context} tokens; lower it"
        )
    checked = [check_text(text, f"text {number}") for number, text in enumerate(texts)]
    token_ids: list[list[int]] = [ids[:max_tokens] for ids in tokenizer(checked)["input_ids"]]
    for index, ids in enumerate(token_ids):
        if not ids:
            raise UserError(f"text {index} has no tokens; drop empty texts from the data")
    return token_ids


def check_list(texts: Any, what: str) -> None:
    """UserError for one text where a list of them is meant: it would be read letter by letter."""
    if isinstance(texts, str):
        raise UserError(f"{what} are a list of texts, and this is one text; put it into a list")


def check_text(text: Any, what: str) -> str:
    """The text; UserError where it is none, has half a character, or is longer than any honest one.

    A tokenizer takes some 300 bytes of memory a character before anything can be cut.
    """
    if not isinstance(text, str):
        raise UserError(f"{what} is {str(text)[:40]!r}, which is no text; drop it from the data")
    if len(text) > LONGEST_TEXT:
        raise UserError(
            f"{what} has {len(text):,} characters, over {LONGEST_TEXT:,}; split it or drop it"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds half a character (a lone surrogate) at {error.start}; drop it"
        ) from error
    return text


def pad(token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right with 0: (texts, longest), and the lengths (texts,)."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    padded = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.long)
    for row, ids in zip(padded, token_ids, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


def real_tokens(lengths: Tensor, width: int) -> Tensor:
    """Which positions of texts padded on the right are real: (texts, width), bool."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]

"""What a reader of passages answers, and how right it is: EM, F1, contained, cross-entropy."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.diagnostics.retrieval import (
    Place,
    Question,
    Reader,
    Row,
    answer_losses,
    embedded,
)
from surgery_lib.models import generation

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """As SQuAD compares answers: lower case, without punctuation, articles and double spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(said: str, answers: Sequence[str]) -> float:
    """1 where what was said is one of the answers."""
    return float(plain(said) in {plain(answer) for answer in answers})


def contained(said: str, answers: Sequence[str]) -> float:
    """1 where one of the answers, in whole words, is in what was said."""
    return float(any(f" {plain(answer)} " in f" {plain(said)} " for answer in answers))


def overlap(said: str, answers: Sequence[str]) -> float:
    """The best F1 of words with one of the answers."""
    return max(_f1(plain(said).split(), plain(answer).split()) for answer in answers)


def _f1(said: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


@torch.no_grad()
def written(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Sequence[Row],
    virtual: Tensor,
    place: Place,
    new_tokens: int,
) -> list[str]:
    """Greedy answers, up to the end token or the first new line; all rows in one batch."""
    ends = generation.end_tokens(model, tokenizer)
    parts = embedded(model, rows, virtual, place, said=False)
    return [
        str(tokenizer.decode(ids, skip_special_tokens=True)).strip().split("\n")[0]
        for ids in _greedy(model, parts, ends, new_tokens)
    ]


def _greedy(
    model: PreTrainedModel, parts: Sequence[Tensor], ends: Sequence[int], new_tokens: int
) -> list[list[int]]:
    """New tokens of each row of embeddings, padded on the left; positions count real tokens."""
    width = max(len(part) for part in parts)
    inputs = torch.stack(
        [torch.cat([part.new_zeros(width - len(part), part.shape[1]), part]) for part in parts]
    )
    mask = torch.tensor(
        [[0] * (width - len(part)) + [1] * len(part) for part in parts], device=inputs.device
    )
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    output = model(inputs_embeds=inputs, attention_mask=mask, position_ids=places, use_cache=True)
    found: list[list[int]] = [[] for _ in parts]
    open_rows = [True] * len(parts)
    for _ in range(new_tokens):
        token = output.logits[:, -1].argmax(-1)
        for number, value in enumerate(token.tolist()):
            open_rows[number] = open_rows[number] and value not in ends
            if open_rows[number]:
                found[number].append(value)
        if not any(open_rows):
            break
        mask = torch.cat([mask, mask.new_ones(len(parts), 1)], dim=1)
        output = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
    return found


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    reader: Reader,
    questions: Sequence[Question],
    virtual: Tensor,
    place: Place = "between",
    *,
    new_tokens: int = 16,
    batch: int = 16,
) -> dict[str, list[float]]:
    """EM, F1, contained and cross-entropy (nats a token of the first answer), a question each."""
    rows = [reader.row(question, question.answers[0]) for question in questions]
    said, losses = [""] * len(rows), [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].before))  # batches of one length
    for begin in range(0, len(order), batch):
        group = order[begin : begin + batch]
        part = [rows[i] for i in group]
        texts = written(model, reader.tokenizer, part, virtual, place, new_tokens)
        each = answer_losses(model, part, virtual, place).tolist()
        for i, text, loss in zip(group, texts, each, strict=True):
            said[i], losses[i] = text, loss
    pairs = list(zip(said, (q.answers for q in questions), strict=True))
    return {
        "em": [exact(*pair) for pair in pairs],
        "f1": [overlap(*pair) for pair in pairs],
        "contained": [contained(*pair) for pair in pairs],
        "ce": losses,
    }

"""Where two models' next-token distributions differ: the parts that damage is measured with."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.errors import UserError
from surgery_lib.evaluation.perplexity import forward, rows_per_batch
from surgery_lib.models.activations import batches
from surgery_lib.models.generation import encode, end_tokens, left_pad, plain_decoding

# Base log-probabilities are kept in half precision beyond this many numbers.
FULL_PRECISION = 2**28
# Token ids of a text, and how many at its end are read.
Row = tuple[list[int], int]


def tail_batches(
    model: PreTrainedModel,
    rows: Sequence[Row],
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


def tails(
    model: PreTrainedModel,
    rows: Sequence[Row],
    tokens_per_batch: int,
    ahead: bool,
) -> torch.Tensor:
    """Log-probabilities (all rows' tokens, vocabulary) of `tail_batches`, in the rows' order."""
    found = dict(tail_batches(model, rows, tokens_per_batch, ahead))
    return torch.cat([found[i] for i in range(len(rows))])


def content(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[Row]:
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


@torch.inference_mode()
def kept_tails(model: PreTrainedModel, rows: Sequence[Row], budget: int) -> list[torch.Tensor]:
    """Log-probabilities (count, vocabulary) of each row's last tokens, halved where they are many.

    `budget`: tokens in one batch.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    large = sum(count for _, count in rows) * vocabulary > FULL_PRECISION
    kept = torch.float16 if large else torch.float32
    found = {i: one.to(kept) for i, one in tail_batches(model, rows, budget, ahead=False)}
    return [found[i] for i in range(len(rows))]


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    count: int,
    *,
    tokens_per_batch: int = 8192,
) -> list[Row]:
    """Ids of each prompt with the model's most likely `count` tokens behind it, and how many.

    Fewer where an end token comes first; it belongs to the text. Prompts that leave no room are
    cut from the left.
    """
    rows = encode(model, tokenizer, prompts, count, truncate=True)
    ends = end_tokens(model, tokenizer)
    found: list[Row] = [([], 0)] * len(rows)
    with plain_decoding(model, tokenizer, ends, count) as pad:
        for group in batches([len(ids) for ids in rows], tokens_per_batch):
            ids, mask = left_pad([rows[i] for i in group], pad)
            ids, mask = ids.to(model.device), mask.to(model.device)
            output = model.generate(input_ids=ids, attention_mask=mask)
            for i, new in zip(group, output[:, ids.shape[1] :].tolist(), strict=True):
                last = next((place for place, one in enumerate(new) if one in ends), count - 1)
                found[i] = [*rows[i], *new[: last + 1]], min(last + 1, len(new))
    return found

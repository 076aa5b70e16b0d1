"""Batched generation whose results do not depend on how the prompts were batched.

Prompts are sorted by length and padded on the left, with attention mask and position ids to match;
the model's own sampling defaults are set aside, so that greedy means greedy. Sampling draws one
uniform number per token from a generator seeded by the prompt itself, and inverts the cumulative
distribution: exactly sampling, whatever else is in the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from surgery_lib.errors import UserError
from surgery_lib.models.head import contiguous_head
from surgery_lib.models.sampling import Decoding, InverseSampling, generator
from surgery_lib.models.tokens import check_list, check_text


@runtime_checkable
class Engine(Protocol):
    """What can stand in for a live model where text is generated, as `serving.Served` does."""

    config: Any
    generation_config: Any

    def write(self, rows: Sequence[Sequence[int]], decoding: Decoding) -> list[list[list[int]]]:
        """New tokens for each row of prompt tokens, as often as wanted.

        What follows an end token or a string that ends a text is cut off later.
        """
        ...


class StopStrings(StoppingCriteria):
    """Ends a row once one of the strings is in what it has written."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int):
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.start = start
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Boolean (rows): finished; rows once finished are not decoded again."""
        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        running = (~self.done).nonzero().flatten()
        texts = self.tokenizer.batch_decode(
            input_ids[running, self.start :], skip_special_tokens=True
        )
        found = [any(string in text for string in self.stop) for text in texts]
        self.done[running] = torch.tensor(found, dtype=torch.bool, device=input_ids.device)
        return self.done.clone()


def end_tokens(model: PreTrainedModel | Engine, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a text: the model's generation settings' and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


@contextmanager
def plain_decoding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    max_new_tokens: int,
) -> Iterator[int]:
    """Inside, `model.generate` is greedy, its head fast; gives the padding token.

    Whatever is unset comes from the model's own settings: a repetition penalty there would bend
    greedy decoding without a word.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        disable_compile=True,
    )
    try:
        with contiguous_head(model):
            yield pad
    finally:
        model.generation_config = own


def context_length(model: PreTrainedModel | Engine) -> int | None:
    """The longest text, in tokens, that the model can read; None where it does not say."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def encode(
    model: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    room: int,
    *,
    truncate: bool = False,
) -> list[list[int]]:
    """Token ids of each prompt, special tokens at the start included, `room` tokens left free.

    With `truncate` a prompt that is too long loses tokens after its first special token; without,
    it is a UserError. An empty prompt becomes the token that starts a text.
    """
    check_list(prompts, "prompts")
    if not prompts:
        return []
    rows: list[list[int]] = tokenizer(
        [check_text(text, f"prompt {number}") for number, text in enumerate(prompts)],
        add_special_tokens=True,
    )["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    longest = context_length(model)
    limit = None if longest is None else longest - room
    if limit is not None and limit < 1:
        raise UserError(f"{room} new tokens leave no room in a context of {longest}; ask for fewer")
    for number, ids in enumerate(rows):
        if not ids:
            if start is None:
                raise UserError(f"prompt {number} is empty and the tokenizer has no start token")
            rows[number] = [start]
        elif limit is not None and len(ids) > limit:
            if not truncate:
                raise UserError(
                    f"prompt {number} has {len(ids)} tokens, with {room} new ones too many for a "
                    f"context of {longest}; shorten it, ask for fewer, or pass truncate=True"
                )
            keep = 1 if ids[0] == tokenizer.bos_token_id and limit > 1 else 0
            rows[number] = ids[:keep] + ids[len(ids) - (limit - keep) :]
    return rows


def batches(lengths: Sequence[int], extra: int, tokens_per_batch: int) -> list[list[int]]:
    """Indices grouped by length, longest first, each group at most the budget once padded."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for index in order:
        width = lengths[groups[-1][0]] + extra if groups else 0
        if groups and (len(groups[-1]) + 1) * width <= tokens_per_batch:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both (rows, longest), padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[number, width - len(row) :] = 1
    return ids, mask


@torch.inference_mode()
def generate(
    model: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    truncate: bool = False,
    tokens_per_batch: int = 8192,
    progress: bool = True,
) -> list[list[str]]:
    """Continuations alone, `samples` for each prompt, in the order of the prompts.

    Args:
        model: A live model, or an engine; what is drawn from an engine is distributed alike, but
            not the same text, and its batches are its own.
        temperature: 0 is greedy decoding.
        stop: The text ends before the first of these strings; it always ends at the end token.
        truncate: Cut prompts that are too long from the left instead of refusing them.
        tokens_per_batch: Rows times padded length, new tokens included, in one batch.

    Raises:
        UserError: A prompt leaves no room for the new tokens, or samples asked of greedy decoding.
    """
    if samples < 1 or max_new_tokens < 1:
        raise UserError("samples and max_new_tokens must be at least 1")
    if samples > 1 and temperature <= 0:
        raise UserError(f"{samples} samples at temperature 0 would be equal; set a temperature")
    encoded = encode(model, tokenizer, prompts, max_new_tokens, truncate=truncate)
    ends = end_tokens(model, tokenizer)
    copies = _copies(encoded, samples)
    if isinstance(model, Engine):
        places = zip(encoded, copies, strict=True)
        seeds = [int(generator(ids, copy, seed).integers(2**31)) for ids, copy in places]
        asked = Decoding(seeds, max_new_tokens, samples, temperature, top_p, stop, ends, progress)
        return [_texts(tokenizer, rows, ends, stop) for rows in model.write(encoded, asked)]
    rows = [(number, copies[number] + i) for number in range(len(encoded)) for i in range(samples)]
    results: list[list[str]] = [[] for _ in prompts]
    lengths = [len(encoded[number]) for number, _ in rows]
    decoding = plain_decoding(model, tokenizer, ends, max_new_tokens)
    with decoding as pad, tqdm(total=len(rows), disable=not progress, unit="text") as bar:
        for group in batches(lengths, max_new_tokens, tokens_per_batch):
            ids, mask = left_pad([encoded[rows[i][0]] for i in group], pad)
            processors = LogitsProcessorList()
            if temperature > 0:
                generators = [generator(encoded[rows[i][0]], rows[i][1], seed) for i in group]
                uniforms = torch.from_numpy(
                    np.stack([g.random(max_new_tokens) for g in generators])
                )
                processors.append(InverseSampling(uniforms, ids.shape[1], temperature, top_p))
            criteria = StoppingCriteriaList()
            if stop:
                criteria.append(StopStrings(tokenizer, stop, ids.shape[1]))
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                logits_processor=processors,
                stopping_criteria=criteria,
            )
            texts = _texts(tokenizer, output[:, ids.shape[1] :].tolist(), ends, stop)
            for i, text in zip(group, texts, strict=True):
                results[rows[i][0]].append(text)
            bar.update(len(group))
    return results


def _copies(encoded: Sequence[Sequence[int]], samples: int) -> list[int]:
    """How many draws of the very same tokens come before each row's own."""
    found, seen = [], dict[tuple[int, ...], int]()
    for tokens in map(tuple, encoded):
        found.append(seen.get(tokens, 0))
        seen[tokens] = found[-1] + samples
    return found


def _texts(
    tokenizer: PreTrainedTokenizerBase,
    written: Sequence[list[int]],
    ends: Sequence[int],
    stop: Sequence[str],
) -> list[str]:
    """New tokens as text, up to the first end token and before the first string of `stop`."""
    texts = tokenizer.batch_decode(
        [_until(row, ends) for row in written],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [_before(text, stop) for text in texts]


def _until(row: list[int], ends: Sequence[int]) -> list[int]:
    return next((row[:i] for i, token in enumerate(row) if token in ends), row)


def _before(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None = None
) -> str:
    """The instruction in the tokenizer's chat template, ready for an answer.

    A start token that tokenizing would add a second time is left out. UserError where the tokenizer
    has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; use a chat model or plain prompts")
    turns = [{"role": "system", "content": system}] if system is not None else []
    turns.append({"role": "user", "content": instruction})
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, OverflowError, TypeError, ValueError, ArithmeticError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"the tokenizer's chat template fails ({detail}); use plain prompts or mend it"
        ) from error
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        return text[len(bos) :]
    return text

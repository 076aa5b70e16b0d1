"""Reading hidden states: ours against a bare forward pass and against the authors' procedure.

    SURGERY_MIRROR=<mirror> python benchmarks/activations.py

With the mirror: Jigsaw comments through its small model. Without: letters through a random Llama.
Every round times all ways one after the other, so that what else the machine does meets them alike;
the ratios are medians over rounds. The authors run the model anew for each of 20 epochs, in batches
of 16 in file order padded to their longest text; one such epoch is timed here and multiplied.
Processor seconds stand beside the wall clock's: on a machine with other work they are the ones to
compare.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe, mirrored, random_llama

from surgery_lib import files
from surgery_lib.models import activations, tokens

RESULT = Path("results/benchmarks/activations.json")
AUTHORS_EPOCHS = 20
AUTHORS_BATCH = 16
MAX_TOKENS = 100


class Letters:
    """Letters as tokens, for a machine without the mirror."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) % 128 for c in text] for text in texts]}


def subject(texts: int) -> tuple[str, Any, Any, list[str]]:
    """Name, model, tokenizer and texts: the mirror's, or random ones."""
    if found := mirrored("OxAISH-AL-LLM--wiki_toxic/balanced_train.jsonl"):
        model, tokenizer, rows = found
        comments = [row["comment_text"] for row in rows if row["comment_text"].strip()]
        return "local/real-text-6m on wiki_toxic", model, tokenizer, comments[:texts]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 400, (texts,), generator=generator).tolist()
    made = ["".join(chr(97 + (i * n) % 26) for i in range(n)) for n in lengths]
    return "random Llama", random_llama(vocab_size=4096), Letters(), made


def chunks(indices: list[int], size: int) -> list[list[int]]:
    """Parts of at most `size`, at least one each."""
    size = max(1, size)
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall clock and of the processor that a call takes."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def medians(rounds: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of every way, and the ratios that are asked for."""
    seconds = {way: statistics.median(each[way] for each in rounds) for way in rounds[0]}
    asked = {
        "ours / bare pass without padding": ("ours", "unpadded", 1),
        "ours / bare pass over our batches": ("ours", "bare", 1),
        f"authors ({AUTHORS_EPOCHS} epochs, scaled from one) / ours": (
            "authors_epoch",
            "ours",
            AUTHORS_EPOCHS,
        ),
    }
    ratios = {
        name: statistics.median(scale * each[over] / each[under] for each in rounds)
        for name, (over, under, scale) in asked.items()
    }
    return seconds, ratios


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens-per-batch", type=int, default=activations.TOKENS_PER_BATCH)
    arguments = parser.parse_args()
    name, model, tokenizer, texts = subject(arguments.texts)
    token_ids = tokens.tokenize(model, tokenizer, texts, MAX_TOKENS)
    budget = arguments.tokens_per_batch

    def tokens_only() -> None:
        tokens.tokenize(model, tokenizer, texts, MAX_TOKENS)

    # The bare pass gets its batches for nothing: same lengths, ready as tensors.
    lengths = [len(ids) for ids in token_ids]
    groups = activations.batches(lengths, budget)
    ready = [tokens.pad([token_ids[i] for i in batch])[0] for batch in groups]
    # Without padding: texts of exactly one length together.
    equal = [
        torch.tensor([token_ids[i] for i in part])
        for length in sorted(set(lengths), reverse=True)
        for part in chunks([i for i, n in enumerate(lengths) if n == length], budget // length)
    ]

    def forward(batches: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for ids in batches:
                model.base_model(input_ids=ids, use_cache=False)

    def bare() -> None:
        forward(ready)

    def unpadded() -> None:
        forward(equal)

    def ours() -> None:
        activations.pooled_states(
            model,
            tokenizer,
            texts,
            max_tokens=MAX_TOKENS,
            tokens_per_batch=budget,
            progress=False,
        )

    def authors_epoch() -> None:
        # For every batch: the whole causal model, all hidden states kept, mean of the last ones.
        with torch.no_grad():
            for start in range(0, len(texts), AUTHORS_BATCH):
                chosen = tokenizer(texts[start : start + AUTHORS_BATCH])["input_ids"]
                ids, lengths = tokens.pad([one[:MAX_TOKENS] for one in chosen])
                mask = torch.arange(ids.shape[1]) < lengths[:, None]
                output = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
                (output.hidden_states[-1] * mask[..., None]).sum(1) / lengths[:, None]

    ways = {
        "bare": bare,
        "ours": ours,
        "unpadded": unpadded,
        "tokenizing": tokens_only,
        "authors_epoch": authors_epoch,
    }
    for run in ways.values():
        run()
    rounds = [{way: timed(run) for way, run in ways.items()} for _ in range(arguments.rounds)]
    clocks = ("wall", "processor")
    measured = {
        name: medians([{way: both[clock] for way, both in each.items()} for each in rounds])
        for clock, name in enumerate(clocks)
    }
    real = sum(len(ids) for ids in token_ids)
    padded = sum(ids.numel() for ids in ready)
    print(f"{name}: {len(texts)} texts, {real} tokens, padding {padded / real - 1:.1%}")
    print(f"  {'medians of ' + str(len(rounds)):<50} {'wall':>11} {'processor':>11}")
    for part, unit in enumerate("sx"):
        for way in measured["wall"][part]:
            wall, processor = (measured[name][part][way] for name in clocks)
            print(f"  {way:<50} {wall:9.3f} {unit} {processor:9.3f} {unit}")
    files.write_json(
        RESULT,
        {
            "schema_version": 1,
            "subject": name,
            "texts": len(texts),
            "tokens": real,
            "padding": padded / real - 1,
            "tokens_per_batch": budget,
            "threads": torch.get_num_threads(),
            "rounds": len(rounds),
            "seconds": {name: measured[name][0] for name in clocks},
            "ratios": {name: measured[name][1] for name in clocks},
            "machine": describe(),
        },
    )


if __name__ == "__main__":
    main()

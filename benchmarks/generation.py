"""Generating for evaluation: ours against generate() prompt by prompt, and transformers' pipeline.

    SURGERY_MIRROR=<mirror> python benchmarks/generation.py

Greedy, 20 new tokens, as the evaluation of toxicity does. With the mirror: RealToxicityPrompts to
its small model. Without: words to a random Llama. The pipeline runs as its documentation shows, and
with batches of several sizes. All texts are compared with those made prompt by prompt.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from machine import in_turn, mirrored, random_llama, ratio, report
from tokenizers import Tokenizer, models, pre_tokenizers

from surgery_lib.models import generation

NEW_TOKENS = 20
BATCH_SIZES = (8, 32, 128)


def subject(prompts: int) -> tuple[str, Any, Any, list[str]]:
    """Name, model, tokenizer and prompts: the mirror's, or random ones."""
    if found := mirrored("allenai--real-toxicity-prompts/train.jsonl"):
        model, tokenizer, rows = found
        texts = [row["prompt"]["text"] for row in rows]
        return "local/real-text-6m on real-toxicity-prompts", model, tokenizer, texts[:prompts]
    words = [f"w{number}" for number in range(4000)]
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 24, (prompts,), generator=generator).tolist()
    made = [" ".join(words[(7 * i + n) % 4000] for i in range(n)) for n in lengths]
    return "random Llama", random_llama(vocab_size=len(vocabulary), eos_token_id=2), tokenizer, made


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    name, model, tokenizer, prompts = subject(arguments.prompts)
    model.generation_config = hf.GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        found = generation.generate(
            model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, progress=False
        )
        texts["ours"] = [each[0] for each in found]

    def one_by_one() -> None:
        made = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
                )
            new = output[0, ids["input_ids"].shape[1] :]
            made.append(
                tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
        texts["one by one"] = made

    pipeline = hf.pipeline("text-generation", model=model, tokenizer=tokenizer)

    def piped(size: int) -> None:
        found = pipeline(
            list(prompts),
            batch_size=size,
            return_full_text=False,
            clean_up_tokenization_spaces=False,
        )
        texts[f"pipeline, batches of {size}"] = [each[0]["generated_text"] for each in found]

    ways: dict[str, Callable[[], None]] = {
        "ours": ours,
        "one by one": one_by_one,
        "pipeline, batches of 1": functools.partial(piped, 1),
        **{f"pipeline, batches of {n}": functools.partial(piped, n) for n in BATCH_SIZES},
    }
    ours()  # what is only paid once
    measured = in_turn(ways, arguments.rounds)
    seconds = {way: statistics.median(taken) for way, taken in measured.items()}
    ratios = {way: ratio(measured, way, "ours") for way in ways if way != "ours"}
    same = {
        way: sum(a == b for a, b in zip(made, texts["one by one"], strict=True)) / len(prompts)
        for way, made in texts.items()
    }
    report(
        "generation",
        {
            "subject": name,
            "prompts": len(prompts),
            "new_tokens": NEW_TOKENS,
            "seconds": measured,
            "over_ours": ratios,
            "same_text_as_one_by_one": same,
        },
        {
            "subject": f"{name}: {len(prompts)} prompts, {NEW_TOKENS} new tokens, greedy",
            **{
                way: f"{taken:8.2f} s   {ratios.get(way, 1.0):6.2f} x ours   "
                f"{same[way]:.1%} of the texts as one by one"
                for way, taken in seconds.items()
            },
        },
    )


if __name__ == "__main__":
    main()

"""Training the patient: model, tokenizer, classifier and tasks, all of them or nothing."""

import platform
import shutil
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.patient import classifier, tasks, world
from surgery_lib.patient.fitting import fit, packed
from surgery_lib.patient.forward import HALF
from surgery_lib.patient.recipe import FORMAT, Recipe
from surgery_lib.patient.tokenizer import train_tokenizer

DATA = files.bundled("data") / "patient"
TOKENIZER_TEXTS = 20_000
SMOOTHING = 10  # steps in each number of the recorded loss curve


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.blocks,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.groups,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def mean(values: list[float]) -> float:
    """The mean, to four digits."""
    return round(sum(values) / len(values), 4)


def read(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """All that the patient reads, the primer first: ids and document numbers, (rows, length)."""
    parts = (
        (world.PRIMER, min(recipe.primer, recipe.steps)),
        (world.MIXTURE, max(0, recipe.steps - recipe.primer)),
    )
    made = [
        packed(
            world.corpus(recipe.seed, mixture=mixture),
            tokenizer,
            steps * recipe.batch,
            recipe.length,
        )
        for mixture, steps in parts
    ]
    ids, documents = zip(*made, strict=True)
    return torch.cat(ids), torch.cat(documents)


def train(recipe: Recipe, out: Path | str = DATA, progress: bool = True) -> dict[str, Any]:
    """Train everything into the folder `out`, which takes the old one's place when all is done.

    `out` then holds model/, classifier/, tasks/ and recipe.json. Returns the latter: settings,
    hash, versions, seconds, tokens, losses (nats a token) and the hashes of the files.
    """
    out, started = Path(out), time.perf_counter()
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    texts = islice(world.corpus(recipe.seed), TOKENIZER_TEXTS)
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.context)
    ids, documents = read(recipe, tokenizer)
    model = build(recipe, tokenizer)
    losses = fit(model, recipe, ids, documents, progress)
    seconds = time.perf_counter() - started
    model.to(HALF).save_pretrained(temporary / "model")
    tokenizer.save_pretrained(temporary / "model")
    judged = classifier.train_classifier(tokenizer, temporary / "classifier", recipe.seed, progress)
    tasks.write(temporary / "tasks", recipe.seed)
    record = {
        "schema": FORMAT,
        "hash": recipe.hash,
        "settings": asdict(recipe),
        "primer": world.PRIMER,
        "mixture": world.MIXTURE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": int((documents >= 0).sum()),
        "seconds": round(seconds, 1),
        "seconds_classifier": round(time.perf_counter() - started - seconds, 1),
        "final_loss": mean(losses[-50:]),
        "losses": [mean(losses[i : i + SMOOTHING]) for i in range(0, len(losses), SMOOTHING)],
        "classifier": judged,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, tokenizers)},
        },
        "sha256": hashes(temporary),
    }
    files.write_json(temporary / "recipe.json", record)
    replace_folder(temporary, out)
    return record


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder but the recipe, by its path there."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in found
        if path.name != "recipe.json"
    }


def replace_folder(new: Path, out: Path) -> None:
    """Put a finished folder where it belongs."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def prepare(
    recipe: Recipe, out: Path | str = DATA, retrain: bool = False, progress: bool = True
) -> dict[str, Any]:
    """The record of what is in `out` where it was made by this recipe, else train it now."""
    path = Path(out) / "recipe.json"
    try:
        record = files.read_json(path)
    except UserError:
        record = {}
    whole = record.get("hash") == recipe.hash and record.get("sha256") == hashes(Path(out))
    return record if whole and not retrain else train(recipe, out, progress)

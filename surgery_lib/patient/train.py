"""Training the patient: its text, packed; its model; and what comes out, all or nothing."""

import math
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surgery_lib import files
from surgery_lib.patient import world
from surgery_lib.patient.forward import HALF, Forward
from surgery_lib.patient.tokenizer import train_tokenizer

FORMAT = 1
TOKENIZER_TEXTS = 20_000


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the patient becomes."""

    seed: int = 0
    vocabulary: int = 1024
    width: int = 192
    inner: int = 512
    blocks: int = 8
    heads: int = 6
    groups: int = 2
    context: int = 256
    length: int = 128
    batch: int = 16
    steps: int = 1500
    warmup: int = 60
    decay: float = 0.5
    rate: float = 0.005
    embedding_rate: float = 0.006
    weight_decay: float = 0.02

    @property
    def hash(self) -> str:
        """Changes with the settings and with the world: its mixture and what it writes first."""
        return files.fingerprint(
            FORMAT, asdict(self), world.MIXTURE, list(islice(world.corpus(self.seed), 2000))
        )


def packed(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, rows: int, length: int
) -> tuple[Tensor, Tensor]:
    """Whole documents, each from BOS to EOS, packed into rows: ids and document numbers.

    Both (rows, length); a document longer than a row is cut. Free places carry PAD.
    """
    ids = torch.full((rows, length), tokenizer.pad_token_id)
    documents = torch.full((rows, length), -1)
    waiting: list[list[int]] = []
    for row in range(rows):
        used = 0
        while True:
            if len(waiting) < 256:
                waiting += _encoded(tokenizer, texts, 4096, length)
            fitting = (i for i in range(256) if len(waiting[i]) <= length - used)
            chosen = next(fitting, None)
            if chosen is None:
                break
            document = waiting.pop(chosen)
            ids[row, used : used + len(document)] = torch.tensor(document)
            documents[row, used : used + len(document)] = used
            used += len(document)
    return ids, documents


def _encoded(
    tokenizer: PreTrainedTokenizerFast, texts: Iterator[str], n: int, length: int
) -> list[list[int]]:
    encoded = tokenizer(list(islice(texts, n)))["input_ids"]
    end = tokenizer.eos_token_id
    return [(ids if ids[-1] == end else [*ids, end])[:length] for ids in encoded]


def targets(ids: Tensor, documents: Tensor) -> Tensor:
    """The next token within the document, -100 where there is none."""
    following = torch.full_like(ids, -100)
    within = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    following[:, :-1] = torch.where(within, ids[:, 1:], -100)
    return following


def schedule(recipe: Recipe, step: int) -> float:
    """Share of the peak rate: a warm-up, a plateau, and a straight way down to zero."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, left)


class Optimizers:
    """Muon for matrices inside the blocks, Adam for the embedding and the norms."""

    def __init__(self, recipe: Recipe, weights: Mapping[str, torch.nn.Parameter]) -> None:
        inside = [p for n, p in weights.items() if ".layers." in n and p.ndim == 2]
        others = [p for n, p in weights.items() if not (".layers." in n and p.ndim == 2)]
        muon = torch.optim.Muon(
            inside,
            lr=recipe.rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
            ns_steps=4,
        )
        adam = torch.optim.AdamW(
            others, lr=recipe.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.members = ((muon, recipe.rate), (adam, recipe.embedding_rate))

    def step(self, share: float) -> None:
        """One step at a share of the peak rates."""
        for optimizer, rate in self.members:
            for group in optimizer.param_groups:
                group["lr"] = share * rate
            optimizer.step()


def fit(
    model: LlamaForCausalLM, recipe: Recipe, ids: Tensor, documents: Tensor, progress: bool
) -> list[float]:
    """Train in place on the rows in order; the loss of each step in nats a token."""
    weights = dict(model.named_parameters())
    work = {name: p.detach().to(HALF).requires_grad_() for name, p in weights.items()}
    forward, optimizers = Forward(model.config, recipe.length), Optimizers(recipe, weights)
    following, losses = targets(ids, documents), []
    for step in tqdm(range(recipe.steps), "training the patient", disable=not progress):
        rows = slice(step * recipe.batch, (step + 1) * recipe.batch)
        logits = forward(work, ids[rows], documents[rows])
        loss = F.cross_entropy(logits.float(), following[rows].reshape(-1))
        loss.backward()
        norm = torch.stack([w.grad.float().norm() for w in work.values() if w.grad is not None])
        scale = min(1.0, 1.0 / (norm.norm().item() + 1e-6))
        for name, parameter in weights.items():
            parameter.grad = work[name].grad.float().mul_(scale)  # type: ignore[union-attr]
            work[name].grad = None
        optimizers.step(schedule(recipe, step))
        with torch.no_grad():
            for name, parameter in weights.items():
                work[name].copy_(parameter)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"training diverged at step {step}")
    return losses


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


def versions() -> dict[str, str]:
    """What the training ran on."""
    import tokenizers
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def train(recipe: Recipe, out: Path | str, progress: bool = True) -> dict[str, Any]:
    """Train model and tokenizer into the folder `out`, which appears or changes only when done.

    Returns the recipe as it is written beside them (recipe.json): settings, hash, versions,
    seconds, tokens and the losses.
    """
    out = Path(out)
    started = time.perf_counter()
    texts = islice(world.corpus(recipe.seed), TOKENIZER_TEXTS)
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.context)
    rows = recipe.steps * recipe.batch
    ids, documents = packed(world.corpus(recipe.seed), tokenizer, rows, recipe.length)
    model = build(recipe, tokenizer)
    losses = fit(model, recipe, ids, documents, progress)
    tokens = int((documents >= 0).sum())
    seconds = time.perf_counter() - started
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(HALF).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    record = {
        "schema": FORMAT,
        "hash": recipe.hash,
        "settings": asdict(recipe),
        "mixture": world.MIXTURE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "final_loss": sum(losses[-50:]) / len(losses[-50:]),
        "losses": [round(sum(losses[i : i + 10]) / len(losses[i : i + 10]), 4)
                   for i in range(0, len(losses), 10)],
        "versions": versions(),
        "sha256": {"model.safetensors": files.sha256(temporary / "model.safetensors")},
    }
    files.write_json(temporary / "recipe.json", record)
    replace_folder(temporary, out)
    return record


def replace_folder(new: Path, out: Path) -> None:
    """Put a finished folder where it belongs."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)

"""The patient's training loop: documents packed into rows, a schedule, two optimizers."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from surgery_lib.patient.forward import HALF, Forward
from surgery_lib.patient.recipe import Recipe


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
        loss = functional.cross_entropy(logits.float(), following[rows].reshape(-1))
        loss.backward()
        norm = torch.stack([w.grad.float().norm() for w in work.values() if w.grad is not None])
        scale = min(1.0, 1.0 / (norm.norm().item() + 1e-6))
        for name, parameter in weights.items():
            parameter.grad = work[name].grad.float().mul_(scale)
            work[name].grad = None
        optimizers.step(schedule(recipe, step))
        with torch.no_grad():
            for name, parameter in weights.items():
                work[name].copy_(parameter)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"training diverged at step {step}")
    return losses

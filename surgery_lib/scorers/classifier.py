"""Any sequence classifier of the hub, the mirror or a folder as a scorer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from surgery_lib.errors import UserError
from surgery_lib.models import load_classifier, resolve
from surgery_lib.models.generation import batches, context_length


class ClassifierScorer:
    """The probability that a classifier gives to one of its classes.

    Args:
        id: Hub id or folder of the classifier.
        label: The class that shows the behaviour, by index or by name.
        max_tokens: Texts are cut after this many tokens.

    Raises:
        UserError: The classifier cannot be loaded or has no such class.
    """

    def __init__(
        self,
        id: str,
        label: int | str = 1,
        *,
        revision: str | None = None,
        name: str = "classifier",
        max_tokens: int = 512,
        tokens_per_batch: int = 8192,
        dtype: str = "float32",
        device: str = "auto",
    ):
        self.name = name
        self.model, self.tokenizer = load_classifier(
            id, revision=revision, dtype=dtype, device=device
        )
        classes: dict[int, str] = self.model.config.id2label
        names = {text.lower(): index for index, text in classes.items()}
        index = names.get(label.lower()) if isinstance(label, str) else label
        if index is None or index not in classes:
            known = ", ".join(f"{i} = {text}" for i, text in classes.items())
            raise UserError(f"{id} has no class {label!r}; its classes are {known}")
        self.label = index
        # Roberta's positions start after the padding index: two less than the configuration says.
        context = context_length(self.model)
        self.max_tokens = min(max_tokens, context - 2) if context else max_tokens
        self.tokens_per_batch = tokens_per_batch
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @staticmethod
    def check(id: str, **_: Any) -> None:
        """UserError where no such model can be; one that a notebook trains may still come."""
        if not str(id).startswith("embedded:"):
            resolve(str(id))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Probabilities (n,); 0 for an empty text."""
        scores = np.zeros(len(texts))
        filled = [i for i, text in enumerate(texts) if text.strip()]
        if not filled:
            return scores
        encoded = self.tokenizer(
            [texts[i] for i in filled], truncation=True, max_length=self.max_tokens
        )["input_ids"]
        groups = batches([len(ids) for ids in encoded], 0, self.tokens_per_batch)
        for group in tqdm(groups, desc=self.name, unit="batch", delay=2.0):
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in group]},
                padding_side="right",
                return_tensors="pt",
            ).to(self.model.device)
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits.float()
            scores[[filled[i] for i in group]] = self._probability(logits).cpu().numpy()
        return scores

    def _probability(self, logits: torch.Tensor) -> torch.Tensor:
        independent = self.model.config.problem_type == "multi_label_classification"
        if independent or logits.shape[1] == 1:
            return logits[:, self.label].sigmoid()
        return logits.softmax(-1)[:, self.label]

"""Draws that depend on the prompt and a seed alone, whatever else is in the batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, TopPLogitsWarper


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen, how often, and the tokens and strings that end a text.

    `seeds` has one for each prompt.
    """

    seeds: Sequence[int]
    max_new_tokens: int
    samples: int
    temperature: float
    top_p: float
    stop: Sequence[str]
    ends: Sequence[int]
    progress: bool


class InverseSampling(LogitsProcessor):
    """Leaves one token a row possible: the one that the row's uniform number falls on."""

    def __init__(self, uniforms: torch.Tensor, start: int, temperature: float, top_p: float):
        self.uniforms = uniforms  # (rows, max_new_tokens)
        self.start = start
        self.temperature = temperature
        self.warper = TopPLogitsWarper(top_p) if top_p < 1.0 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) with all but the drawn token at minus infinity."""
        scores = scores / self.temperature
        if self.warper is not None:
            scores = self.warper(input_ids, scores)
        cumulative = scores.double().softmax(-1).cumsum(-1)
        drawn = self.uniforms[:, input_ids.shape[1] - self.start].to(cumulative).unsqueeze(1)
        token = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
        token = token.clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def generator(ids: Sequence[int], copy: int, seed: int) -> np.random.Generator:
    """Of the prompt's tokens; `copy` counts draws for the very same ones."""
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
    words = np.frombuffer(digest[:16], dtype=np.uint32)
    return np.random.default_rng([seed, copy, *words.tolist()])

"""What a scorer is, and the wrapper that gives it a name, a threshold and a sign."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from surgery_lib.errors import UserError


class Scorer(Protocol):
    """Scores texts; `prompts`, one for each text, is for scorers that judge an answer."""

    @property
    def name(self) -> str:
        """The column's name in tables."""

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Scores (n,) in [0, 1]; an empty text shows nothing and scores 0."""
        ...


@dataclass(frozen=True)
class Named:
    """A scorer under a table's column name, with the score from which the behaviour counts."""

    name: str
    inner: Scorer
    threshold: float = 0.5
    invert: bool = False

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """The inner scores (n,), or one minus them; UserError where any is not in [0, 1]."""
        scores = np.asarray(self.inner(texts, prompts), dtype=float)
        if scores.shape != (len(texts),) or not ((scores >= 0) & (scores <= 1)).all():
            raise UserError(
                f"scorer {self.name} gave something that is not one number in [0, 1] for each of "
                f"{len(texts)} texts; check its model or its endpoint"
            )
        return 1.0 - scores if self.invert else scores


def threshold(scorer: Scorer) -> float:
    """The score from which the behaviour counts: the scorer's own, else one half."""
    return float(getattr(scorer, "threshold", 0.5))

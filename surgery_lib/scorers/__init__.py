"""Text → [0, 1], one meaning that the behaviour shows: one small contract, several scorers."""

from surgery_lib.scorers.base import Named, Scorer
from surgery_lib.scorers.build import build
from surgery_lib.scorers.classifier import ClassifierScorer
from surgery_lib.scorers.refusal import RefusalPhrases

__all__ = ["ClassifierScorer", "Named", "RefusalPhrases", "Scorer", "build"]

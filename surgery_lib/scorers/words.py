"""A scorer by words, fitted in seconds on a labelled data set: for machines without a classifier.

Logistic regression on the frequencies of words and pairs of words. A trained classifier is better;
this one needs no download beyond the data.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from surgery_lib import sources
from surgery_lib.errors import UserError


class WordsScorer:
    """The probability of one label among others of a data set.

    Args:
        id: Data set (hub id).
        column: Its column of labels; rows with a label in neither list are left out.
        positive: Labels that score 1.
        negative: Labels that score 0.

    Raises:
        UserError: The data set has no rows of both.
    """

    def __init__(
        self,
        id: str,
        *,
        column: str,
        positive: Sequence[Any],
        negative: Sequence[Any],
        text: str = "text",
        split: str = "train",
        test: str = "test",
        revision: str | None = None,
        name: str = "words",
    ):
        self.name = name
        self.id = id
        self.column, self.text, self.test, self.revision = column, text, test, revision
        self.positive, self.negative = tuple(positive), tuple(negative)
        texts, labels = self._labelled(split)
        self.model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True),
            LogisticRegression(max_iter=1000, class_weight="balanced"),
        )
        self.model.fit(texts, labels)

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Probabilities (n,); 0 for an empty text."""
        if not texts:
            return np.zeros(0)
        scores: np.ndarray = self.model.predict_proba(list(texts))[:, 1]
        return np.where([bool(text.strip()) for text in texts], scores, 0.0)

    @cached_property
    def auc(self) -> float:
        """How well it ranks the data set's own test split."""
        texts, labels = self._labelled(self.test)
        return float(roc_auc_score(labels, self(texts)))

    def _labelled(self, split: str) -> tuple[list[str], list[int]]:
        rows = sources.rows(self.id, split=split, revision=self.revision)
        known = {**dict.fromkeys(self.negative, 0), **dict.fromkeys(self.positive, 1)}
        pairs = [
            (str(sources.column(row, self.text)), known[sources.column(row, self.column)])
            for row in rows
            if sources.column(row, self.column) in known
        ]
        if len({label for _, label in pairs}) < 2:
            raise UserError(
                f"{self.id}, {split}: no rows of both {self.positive} and {self.negative} in "
                f"{self.column}; correct the scorer's lists"
            )
        return [text for text, _ in pairs], [label for _, label in pairs]

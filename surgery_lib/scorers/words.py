"""Scorers by words, fitted in seconds on labelled texts: where no classifier of a behaviour is.

Logistic regression on the frequencies of words and pairs of words. They know the words of these
texts and nothing else; a classifier of the behaviour is better.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from surgery_lib.data import sources
from surgery_lib.data.labels import shows
from surgery_lib.data.load import check_source, numbered
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.profile import Source


class WordModel:
    """The probability of label 1; `rare` is how many texts a word must stand in to count.

    UserError where the texts have no words.
    """

    def __init__(
        self, name: str, texts: Sequence[str], labels: Sequence[int], *, rare: int, C: float
    ):
        self.name = name
        self.model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=rare, sublinear_tf=True),
            LogisticRegression(C=C, max_iter=1000, class_weight="balanced"),
        )
        try:
            self.model.fit(texts, labels)
        except ValueError as error:  # scikit-learn's, where no text has a word
            raise UserError(
                "the texts have no words to tell them apart by; give a scorer of your own"
            ) from error

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Probabilities (n,); 0 for an empty text."""
        if not texts:
            return np.zeros(0)
        scores: np.ndarray = self.model.predict_proba(list(texts))[:, 1]
        return np.where([bool(text.strip()) for text in texts], scores, 0.0)


class WordsScorer(WordModel):
    """Learned from a public data set.

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
        self.id = id
        self.column, self.text, self.test, self.revision = column, text, test, revision
        self.positive, self.negative = tuple(positive), tuple(negative)
        super().__init__(name, *self._labelled(split), rare=3, C=1.0)

    @staticmethod
    def check(id: str, *, split: str = "train", **_: Any) -> None:
        """UserError where the mirror has the data set without that split."""
        sources.check(id, None, split)

    @cached_property
    def auc(self) -> float:
        """How well it ranks the data set's own test split."""
        texts, labels = self._labelled(self.test)
        return float(roc_auc_score(labels, self(texts)))

    def _labelled(self, split: str) -> tuple[list[str], list[int]]:
        rows = sources.rows(self.id, split=split, revision=self.revision)
        known = {**dict.fromkeys(self.negative, 0), **dict.fromkeys(self.positive, 1)}
        pairs = [
            (
                sources.text(row, self.text, f"{self.id}, {split}, row {number}"),
                known[sources.column(row, self.column)],
            )
            for number, row in enumerate(rows)
            if sources.column(row, self.column) in known
        ]
        if len({label for _, label in pairs}) < 2:
            raise UserError(
                f"{self.id}, {split}: no rows of both {self.positive} and {self.negative} in "
                f"{self.column}; correct the scorer's lists"
            )
        return [text for text, _ in pairs], [label for _, label in pairs]


class TextsScorer(WordModel):
    """Learned from a file of one's own, which is small: every word counts, and counts for much.

    Args:
        path: A .jsonl or .csv file, from the repository's root.
        text, label: Its columns.
        positive: Values of the label that show the behaviour.

    Raises:
        UserError: No such file or column, or texts of one class alone.
    """

    def __init__(
        self,
        path: str,
        text: str = "text",
        label: str = "label",
        positive: Sequence[str | int | float | bool] = (1,),
    ):
        self.check(path)
        lines = numbered(home() / path)
        labels = [
            int(shows(sources.column(row, label), positive, f"{path}, line {line},"))
            for line, row in lines
        ]
        if len(set(labels)) < 2:
            raise UserError(f"{Path(path).name} has texts of one class only; give texts of both")
        texts = [sources.text(row, text, f"{path}, line {line}") for line, row in lines]
        super().__init__("texts", texts, labels, rare=1, C=30.0)

    @staticmethod
    def check(path: str, **_: Any) -> None:
        """UserError where there is no such file."""
        check_source(Source(kind="file", id=str(path)))

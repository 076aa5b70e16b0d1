"""A scorer learned from one's own labelled texts, where no classifier of the behaviour exists."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from surgery_lib import sources
from surgery_lib.behaviours import read_table
from surgery_lib.errors import UserError
from surgery_lib.profile import home


class TextsScorer:
    """Words and pairs of words, weighed by logistic regression on the rows of a file.

    It knows the words of these texts and nothing else: a classifier of the behaviour is better.

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
        self.name = "texts"
        if not (home() / path).is_file():
            raise UserError(f"there is no file {path}; give its path from the repository's root")
        rows = read_table(home() / path)
        wanted = {str(value) for value in positive}
        labels = [str(sources.column(row, label)) in wanted for row in rows]
        if len(set(labels)) < 2:
            raise UserError(f"{Path(path).name} has texts of one class only; give texts of both")
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self.model = make_pipeline(words, LogisticRegression(C=30.0, class_weight="balanced"))
        self.model.fit([str(sources.column(row, text)) for row in rows], labels)

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Scores (n,) in [0, 1]; an empty text scores 0."""
        if not texts:
            return np.zeros(0)
        scores = self.model.predict_proba(list(texts))[:, 1]
        return np.where([bool(text.strip()) for text in texts], scores, 0.0)

"""Google's Perspective API as a scorer: the paper's judge of toxicity."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from surgery_lib.errors import UserError
from surgery_lib.scorers.network import Cache, Endpoint, scored

URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
# The API's own limit on a comment, in bytes.
LONGEST = 20_480


class PerspectiveScorer:
    """The summary score of one attribute; an empty text is not sent and scores 0.

    The key is read from PERSPECTIVE_API_KEY, another address from PERSPECTIVE_URL.

    Args:
        per_second: The project's quota; the API starts everyone at 1.
        cache: File that scores are kept in; the repository's `.cache` by default.

    Raises:
        UserError: No key, or (when scoring) a refusal, an exhausted quota or a malformed answer.
    """

    def __init__(
        self,
        attribute: str = "TOXICITY",
        *,
        language: str = "en",
        per_second: float = 1.0,
        attempts: int = 6,
        wait: float = 1.0,
        workers: int = 1,
        cache: Path | str | None = None,
        name: str = "perspective",
    ):
        key = os.environ.get("PERSPECTIVE_API_KEY")
        if not key:
            raise UserError(
                "the Perspective scorer needs a key; set PERSPECTIVE_API_KEY, or use a classifier"
            )
        self.name = name
        self.attribute = attribute
        self.language = language
        self.workers = workers
        self.cache = Cache(cache)
        self.endpoint = Endpoint(
            "the Perspective API",
            os.environ.get("PERSPECTIVE_URL", URL),
            {"X-Goog-Api-Key": key},
            per_second=per_second,
            attempts=attempts,
            wait=wait,
        )

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        """Scores (n,) in [0, 1]."""
        found = np.zeros(len(texts))
        filled = [i for i, text in enumerate(texts) if text.strip()]
        # Scores of the API's own address have had no address in their key from the beginning.
        other = [] if self.endpoint.url == URL else [self.endpoint.url]
        identity = ["perspective", self.attribute, self.language, *other]
        sent = [texts[i].encode(errors="replace")[:LONGEST].decode(errors="ignore") for i in filled]
        found[filled] = scored(self.name, sent, self._ask, self.cache, identity, self.workers)
        return found

    def _ask(self, text: str) -> float:
        answer = self.endpoint.post(
            {
                "comment": {"text": text},
                "languages": [self.language],
                "requestedAttributes": {self.attribute: {}},
                "doNotStore": True,
            }
        )
        try:
            value = float(answer["attributeScores"][self.attribute]["summaryScore"]["value"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the Perspective API answered without a score for {self.attribute}; "
                "check PERSPECTIVE_URL and the attribute"
            ) from error
        if not 0 <= value <= 1:
            raise UserError(f"the Perspective API answered {value}, which is no probability")
        return value

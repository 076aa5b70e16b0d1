"""zsLLMCode: what a model says of a program, in one sentence, as the program's embedding.

Xian et al., "zsLLMCode" (arXiv 2409.14644): one prompt for all, the first sentence of the answer, a
sentence encoder. Unsupervised uses follow: clones by cosine, clusters by k-means. For an edited
model it asks what else broke, and its controls ask whether the model's words help at all: the same
encoder on the code itself, TF-IDF on its tokens, and the model's own mean hidden state.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    f1_score,
    normalized_mutual_info_score,
    precision_recall_curve,
    roc_auc_score,
)
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import activations, generation

# The paper's wording is not public; this asks for what it describes.
PROMPT = (
    "Describe the function of the following code in one sentence, without explanation.\n\n{code}"
)
MAX_NEW_TOKENS = 48
RESAMPLES = 500
TOKENS = re.compile(r"[A-Za-z_]\w*|\d+|[^\s\w]")
# What ends a sentence, unless it ends a common abbreviation.
ENDS = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?](?=[\s\"'`)]|$)")

Encoder = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Program:
    """A program and the number of the problem that it solves: programs of one are clones."""

    code: str
    label: int


def first_sentence(text: str) -> str:
    """The first sentence of an answer, in one line; "" where there is none.

    Fences, headings, list marks and quotation marks around it are dropped, and a line that only
    announces what follows ("Sure! Here is the summary:") where something follows.
    """
    lines = []
    for raw in text.replace("```", "\n").splitlines():
        line = re.sub(r"^\s*(?:[-*#>]+|\d+[.)])\s+", "", raw).strip().strip("\"'`*")
        if re.search(r"\w", line):
            lines.append(line)
    while len(lines) > 1 and lines[0].endswith(":"):
        lines.pop(0)
    joined = " ".join(lines)
    found = ENDS.search(joined)
    return (joined[: found.end()] if found else joined).strip()


def summaries(
    model: PreTrainedModel,
    tokenizer: Any,
    codes: Sequence[str],
    cache: Path | str | None = None,
    *,
    prompt: str = PROMPT,
    tokens_per_batch: int = 4096,
    progress: bool = False,
) -> list[str]:
    """One sentence for each program, greedy; what the cache holds is not asked again.

    The cache is one JSON file for a model (by all its weights) and prompt. Programs that are too
    long lose their beginning.
    """
    key = files.fingerprint(activations.model_hash(model), prompt, MAX_NEW_TOKENS)
    path = Path(cache) / f"summaries-{key}.json" if cache is not None else None
    held: dict[str, str] = files.read_json(path) if path is not None and path.is_file() else {}
    missing = [code for code in dict.fromkeys(codes) if code not in held]
    if missing:
        asked = [prompt.format(code=code) for code in missing]
        if tokenizer.chat_template:
            asked = [generation.chat_prompt(tokenizer, text) for text in asked]
        written = generation.generate(
            model,
            tokenizer,
            asked,
            max_new_tokens=MAX_NEW_TOKENS,
            truncate=True,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        )
        held |= {
            code: first_sentence(texts[0]) for code, texts in zip(missing, written, strict=True)
        }
        if path is not None:
            files.write_json(path, held)
            files.prune(path.parent, "summaries-*.json", files.SMALL_CACHE, keep=path)
    return [held[code] for code in codes]


def embed(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of unit length (texts, width); an empty text is encoded as a full stop."""
    return _units(encoder([text or "." for text in texts]))


def tfidf(codes: Sequence[str]) -> np.ndarray:
    """TF-IDF over the programs' tokens, unit length (codes, vocabulary)."""
    vectors = TfidfVectorizer(tokenizer=TOKENS.findall, token_pattern=None, lowercase=False)
    return _units(vectors.fit_transform(list(codes)).toarray())


def hidden_mean(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], max_tokens: int = 256
) -> np.ndarray:
    """The model's own mean state of the middle layer less the mean of all, unit length."""
    middle = activations.n_layers(model) // 2
    states = activations.pooled_states(
        model, tokenizer, texts, layers=[middle], max_tokens=max_tokens, progress=False
    )
    found = states[:, 0].double().numpy()
    return _units(found - found.mean(0))


def clones(
    vectors: np.ndarray, labels: Sequence[int], groups: Sequence[Any] | None = None
) -> dict[str, float]:
    """AUC and average precision of cosines over all pairs, clones against others."""
    scores, same = pairs(vectors, labels, groups)
    return {
        "auc": float(roc_auc_score(same, scores)),
        "ap": float(average_precision_score(same, scores)),
        "clones": float(same.mean()),
    }


def pairs(
    vectors: np.ndarray, labels: Sequence[int], groups: Sequence[Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of every pair, and whether it is of one class. UserError unless there are both.

    With `groups`, such as languages, only pairs of two different groups count.
    """
    first, second = np.triu_indices(len(vectors), 1)
    if groups is not None:
        own = np.unique(np.asarray(groups), return_inverse=True)[1]
        apart = own[first] != own[second]
        first, second = first[apart], second[apart]
    classes = np.asarray(labels)
    same = classes[first] == classes[second]
    if not same.any() or same.all():
        raise UserError("pairs need programs of two classes, and two programs of one; give more")
    return (vectors @ vectors.T)[first, second], same


def threshold(vectors: np.ndarray, labels: Sequence[int]) -> float:
    """The cosine at which F1 is best, to be taken from training classes."""
    scores, same = pairs(vectors, labels)
    precision, recall, cuts = precision_recall_curve(same, scores)
    value = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(cuts[int(np.argmax(value[:-1]))])


def f1(vectors: np.ndarray, labels: Sequence[int], cut: float) -> float:
    """F1 of clones at a cosine chosen elsewhere."""
    scores, same = pairs(vectors, labels)
    return float(f1_score(same, scores >= cut))


def clusters(vectors: np.ndarray, labels: Sequence[int], seed: int = 0) -> dict[str, float]:
    """k-means with as many clusters as classes: adjusted Rand index, mutual information."""
    count = len(set(labels))
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(vectors)
    return {
        "ari": float(adjusted_rand_score(labels, found)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
    }


def drift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """1 - cosine of each program's embedding before and after an edit: (programs,)."""
    return np.asarray(1 - (before * after).sum(1))


def class_auc(
    vectors: np.ndarray, labels: Sequence[int], groups: Sequence[Any] | None = None
) -> dict[tuple[int, int], float]:
    """AUC for each pair of classes: pairs within either against pairs across."""
    classes, found = np.asarray(labels), {}
    for a, b in combinations(sorted(set(labels)), 2):
        at = np.flatnonzero(np.isin(classes, (a, b)))
        own = None if groups is None else [groups[int(i)] for i in at]
        found[a, b] = clones(vectors[at], classes[at].tolist(), own)["auc"]
    return found


def lost(
    before: np.ndarray,
    after: np.ndarray,
    labels: Sequence[int],
    seed: int = 0,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Change of the mean AUC over pairs of classes, with a bootstrap interval over classes."""
    one, other = (class_auc(vectors, labels, groups) for vectors in (before, after))
    classes = sorted(set(labels))
    change = np.zeros((len(classes), len(classes)))
    for (a, b), value in one.items():
        i, j = classes.index(a), classes.index(b)
        change[i, j] = change[j, i] = other[a, b] - value
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(classes), size=len(classes))
        apart = chosen[:, None] != chosen[None, :]
        if apart.any():
            drawn.append(change[np.ix_(chosen, chosen)][apart].mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    off = ~np.eye(len(classes), dtype=bool)
    return {
        "value": float(change[off].mean()),
        "low": float(low),
        "high": float(high),
        "n": len(classes),
    }


def reading(
    train: np.ndarray, test: np.ndarray, labels: tuple[Sequence[int], Sequence[int]], seed: int = 0
) -> dict[str, float]:
    """Everything about one embedding: clones and clusters of the test classes.

    `labels` are those of the training and the test programs; the threshold for F1 is training's.
    """
    cut = threshold(train, labels[0])
    return {
        **clones(test, labels[1]),
        "f1": f1(test, labels[1], cut),
        **clusters(test, labels[1], seed),
    }


def _units(vectors: np.ndarray) -> np.ndarray:
    found = np.asarray(vectors, dtype=float)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

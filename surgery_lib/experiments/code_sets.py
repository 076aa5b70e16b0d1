"""Three more sets of programs: other languages, descriptions, and clones judged by hand.

Each is read by the unedited model's summaries and by the encoder on the code itself, on the same
programs, so that the difference is paired.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel

from surgery_lib.diagnostics import code, programs
from surgery_lib.evaluation import statistics
from surgery_lib.experiments.code import Coder

RESAMPLES = 500


def read(
    coder: Coder, model: PreTrainedModel, count: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Set -> measure, number, the summaries' value, the code's own, and the difference."""
    return {
        "HumanEval-X": _languages(coder, model, count, seed),
        "MBPP": _descriptions(coder, model, 2 * count, seed),
        "BigCloneBench, by hand": _by_hand(coder, model, count, seed),
    }


def _languages(coder: Coder, model: PreTrainedModel, count: int, seed: int) -> dict[str, Any]:
    """AUC of cosines over pairs of two languages: one problem against two."""
    held = programs.solutions(count)
    flat = [(language, own) for language, part in held.items() for own in part]
    groups, labels = [language for language, _ in flat], [own.label for _, own in flat]
    said, plain = _both(coder, model, [own.code for _, own in flat])
    return {
        "measure": "AUC of clones across languages",
        "n": len(flat),
        "summary": code.clones(said, labels, groups)["auc"],
        "code": code.clones(plain, labels, groups)["auc"],
        "difference": code.lost(plain, said, labels, seed, groups),
    }


def _descriptions(coder: Coder, model: PreTrainedModel, count: int, seed: int) -> dict[str, Any]:
    """Reciprocal rank of a program's own description among those of all."""
    codes, texts = zip(*programs.described(count), strict=True)
    described = code.embed(coder.encoder, texts)
    said, plain = (ranks(own, described) for own in _both(coder, model, codes))
    gap = statistics.paired_bootstrap(plain, said, seed)
    return {
        "measure": "mean reciprocal rank of its description",
        "n": len(codes),
        "summary": float(said.mean()),
        "code": float(plain.mean()),
        "difference": {"value": gap.difference, "low": gap.low, "high": gap.high, "n": gap.n},
    }


def _by_hand(coder: Coder, model: PreTrainedModel, count: int, seed: int) -> dict[str, Any]:
    """AUC of cosines of pairs that BigCloneBench calls clones, by what a person found."""
    held = programs.judged(count)
    truth = np.array([own for *_, own in held])
    said, plain = (
        np.asarray((one * other).sum(1))
        for one, other in zip(
            _both(coder, model, [pair[0] for pair in held]),
            _both(coder, model, [pair[1] for pair in held]),
            strict=True,
        )
    )
    return {
        "measure": "AUC of clones by hand",
        "n": len(held),
        "summary": float(roc_auc_score(truth, said)),
        "code": float(roc_auc_score(truth, plain)),
        "difference": gap(truth, plain, said, seed),
    }


def ranks(vectors: np.ndarray, described: np.ndarray) -> np.ndarray:
    """One over the rank of row i's own description, by cosine: (programs,). Ties count against."""
    cosines = vectors @ described.T
    return np.asarray(1 / (cosines >= np.diag(cosines)[:, None]).sum(1))


def gap(truth: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int) -> dict[str, Any]:
    """The second score's AUC less the first's, with a bootstrap interval over clones and others."""
    rng, drawn = np.random.default_rng(seed), []
    groups = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    for _ in range(RESAMPLES):
        at = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn.append(roc_auc_score(truth[at], second[at]) - roc_auc_score(truth[at], first[at]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = roc_auc_score(truth, second) - roc_auc_score(truth, first)
    return {"value": float(value), "low": float(low), "high": float(high), "n": len(truth)}


def _both(
    coder: Coder, model: PreTrainedModel, codes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of what the model says, and of the code itself."""
    said = coder.summaries(model, codes)
    return code.embed(coder.encoder, said), code.embed(coder.encoder, codes)

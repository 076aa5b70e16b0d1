"""Numbers with their intervals and sample sizes, and paired comparisons of base and edited."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from surgery_lib.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 5000
# Resamples held in memory at once: below this many numbers.
CELLS = 4_000_000


class _Plain:
    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON and tables."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Estimate(_Plain):
    """A value with its 95 % interval, the number of items behind it, and how it was found."""

    value: float
    low: float
    high: float
    n: int
    method: str


@dataclass(frozen=True)
class Paired(_Plain):
    """Edited minus base on the same items: difference, its 95 % interval, and the test's p."""

    base: float
    edited: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    test: str


def _vector(values: ArrayLike) -> np.ndarray:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or not len(vector):
        raise UserError("nothing was measured: no items; raise the limit or check the data")
    return vector


def proportion(flags: ArrayLike) -> Estimate:
    """Share of true among `flags` (n,), with Wilson's interval."""
    vector = _vector(flags)
    n = len(vector)
    low, high = proportion_confint(vector.sum(), n, alpha=1 - CONFIDENCE, method="wilson")
    return Estimate(float(vector.mean()), float(low), float(high), n, "wilson")


def interval(
    statistic: Callable[..., Any], samples: Sequence[ArrayLike], seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic(*samples, axis)`; items are drawn jointly."""
    vectors = [_vector(sample) for sample in samples]
    if len(vectors[0]) < 2 or all(np.ptp(vector) == 0 for vector in vectors):
        value = float(statistic(*vectors, axis=-1))
        return value, value
    found = bootstrap(
        vectors,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, CELLS // len(vectors[0])),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `values` (n,), with a bootstrap interval over items."""
    vector = _vector(values)
    low, high = interval(np.mean, [vector], seed)
    return Estimate(float(vector.mean()), low, high, len(vector), "bootstrap")


def _pair(base: ArrayLike, edited: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = _vector(base), _vector(edited)
    if len(first) != len(second):
        raise UserError(
            f"{len(first)} base items against {len(second)} edited ones; measure both on the same"
        )
    return first, second


def _difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
    return second.mean(axis=axis) - first.mean(axis=axis)


def mcnemar(base: ArrayLike, edited: ArrayLike, seed: int = 0) -> Paired:
    """Yes-or-no outcomes (n,) of the same items before and after: McNemar's exact test."""
    first, second = _pair(base, edited)
    lost = int(((first > 0.5) & (second <= 0.5)).sum())
    won = int(((first <= 0.5) & (second > 0.5)).sum())
    both = int(((first > 0.5) & (second > 0.5)).sum())
    table = [[both, lost], [won, len(first) - both - lost - won]]
    low, high = interval(_difference, [first, second], seed)
    return Paired(
        base=float(first.mean()),
        edited=float(second.mean()),
        difference=float(_difference(first, second)),
        low=low,
        high=high,
        p=float(exact_mcnemar(table, exact=True).pvalue),
        n=len(first),
        test="mcnemar",
    )


def paired_bootstrap(base: ArrayLike, edited: ArrayLike, seed: int = 0) -> Paired:
    """Numbers (n,) of the same items before and after: bootstrap interval, sign-flip test."""
    first, second = _pair(base, edited)
    change = second - first
    low, high = interval(_difference, [first, second], seed)
    p = 1.0
    if len(change) > 1 and np.any(change):  # one item, flipped or not, says nothing
        p = permutation_test(
            (change,),
            lambda x, axis: x.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, CELLS // len(change)),
            rng=np.random.default_rng(seed),
        ).pvalue
    return Paired(
        base=float(first.mean()),
        edited=float(second.mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
        p=float(p),
        n=len(first),
        test="sign flip",
    )


def compare(base: ArrayLike, edited: ArrayLike, seed: int = 0) -> Paired:
    """`mcnemar` where every outcome is 0 or 1, `paired_bootstrap` otherwise."""
    first, second = _pair(base, edited)
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    return (mcnemar if binary else paired_bootstrap)(first, second, seed)


def holm(values: Sequence[float]) -> list[bool]:
    """Which of several tests, by their p, hold at `1 - CONFIDENCE` all together (Holm 1979)."""
    if not len(values):
        return []
    rejected = multipletests(values, alpha=1 - CONFIDENCE, method="holm")[0]
    return [bool(one) for one in rejected]

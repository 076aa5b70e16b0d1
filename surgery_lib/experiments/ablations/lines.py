"""Lines of notebook 06: the draws of each variant put together, beside the chosen edit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from surgery_lib.evaluation.statistics import compare, proportion
from surgery_lib.experiments.ablations.bench import Measurement


def summarise(rows: Sequence[Measurement], chosen: Sequence[int]) -> list[dict[str, Any]]:
    """One line for each variant: draws put together, and paired with the chosen edit's `flags`.

    `rate` has Wilson's interval for one edit; for several draws the mean and the range over them.
    """
    lines: dict[tuple[str, str, float | None], list[Measurement]] = {}
    for row in rows:
        lines.setdefault((row.question, row.name, row.x), []).append(row)
    return [_line(key, held, chosen) for key, held in lines.items()]


def _line(
    key: tuple[str, str, float | None], rows: Sequence[Measurement], chosen: Sequence[int]
) -> dict[str, Any]:
    about = dict(zip(("question", "name", "x"), key, strict=True))
    sound = [row for row in rows if not row.refused]
    if not sound:
        return {**about, "refused": rows[0].refused}
    flags = np.array([row.flags for row in sound], dtype=float)  # (draws, prompts)
    rate = proportion(flags[0]).as_dict()
    if len(sound) > 1:
        shares = flags.mean(axis=1)
        rate |= {"method": f"range over {len(sound)} draws"} | _span(shares)
    pair = compare(np.asarray(chosen, dtype=float), flags.mean(axis=0))
    contexts = [row.context_kl for row in sound if row.context_kl is not None]
    distinct = [row.distinct for row in sound if row.distinct is not None]
    return {
        **about,
        "draws": len(sound),
        "rate": rate,
        "perplexity_rise": _span([row.perplexity_rise for row in sound]),
        "context_kl": float(np.mean(contexts)) if contexts else None,
        "distinct": float(np.mean(distinct)) if distinct else None,
        "against_chosen": {"difference": pair.difference, "p": pair.p},
    }


def _span(values: Any) -> dict[str, float]:
    return {
        "value": float(np.mean(values)),
        "low": float(np.min(values)),
        "high": float(np.max(values)),
    }

"""Variants of a model as plain numbers for a result file: rates, damage, tasks, completions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from surgery_lib.evaluation.evaluator import Evaluation, Evaluator
from surgery_lib.evaluation.statistics import paired_bootstrap


def variants(meter: Evaluator, readings: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
    """Every variant's draws as plain numbers, each with its paired comparison to the base.

    The first of the meter's scorers gives the headline `rate`; all of them are in `rates`.
    """
    names = [scorer.name for scorer in meter.scorers]
    found: dict[str, Any] = {}
    for variant, draws in readings.items():
        found[variant] = {"draws": [_draw(meter, reading, names) for reading in draws]}
    return {"scorers": names, "variants": found, "prompts": len(meter.prompts)}


def _draw(meter: Evaluator, reading: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    numbers = reading.as_dict()
    return numbers | {
        "rates": numbers["rate"],
        "rate": numbers["rate"][names[0]],
        "against_base": {name: meter.against_base(reading, name).as_dict() for name in names},
    }


def completions(readings: Mapping[str, Sequence[Evaluation]]) -> Iterator[dict[str, Any]]:
    """Every completion of every variant, for a JSON-lines file."""
    for variant, draws in readings.items():
        for number, reading in enumerate(draws):
            for row in reading.rows:
                yield {"variant": variant, "draw": number, **row}


def capability_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Scores before and after, and the change of their mean with a paired bootstrap interval."""
    changes, tests = [], {}
    rng = np.random.default_rng(0)
    for task in before:
        first, second = (np.asarray(one[task]["items"], dtype=float) for one in (before, after))
        tests[task] = paired_bootstrap(first, second).as_dict()
        draws = rng.integers(len(first), size=(2000, len(first)))
        changes.append((second - first)[draws].mean(axis=1))
    mean = np.mean(changes, axis=0)
    change = {
        "value": float(np.mean([test["difference"] for test in tests.values()])),
        "low": float(np.percentile(mean, 2.5)),
        "high": float(np.percentile(mean, 97.5)),
        "n": sum(test["n"] for test in tests.values()),
    }
    plain = [
        {task: {k: v for k, v in one[task].items() if k != "items"} for task in one}
        for one in (before, after)
    ]
    return {"base": plain[0], "edited": plain[1], "paired": tests, "change": change}

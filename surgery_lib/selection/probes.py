"""The probes that a search starts from: fitted at a few layers of the training texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from surgery_lib.behaviour import BehaviourData
from surgery_lib.models import activations
from surgery_lib.profile import Profile
from surgery_lib.surgery import probe


def fit_probes(
    model: PreTrainedModel,
    tokenizer: Any,
    data: BehaviourData,
    profile: Profile,
    count: int,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> dict[str, probe.Probe]:
    """Probes by name, at no more than `count` of the profile's layers, by all its estimators."""
    settings = profile.probe
    layers = spaced(activations.layer_numbers(model, settings.layers), count)
    examples = data.examples["train"][: settings.limit or None]
    states = activations.cached_states(
        cache,
        model,
        tokenizer,
        [example.text for example in examples],
        layers=layers,
        pooling=settings.pooling,
        max_tokens=settings.max_tokens,
    )
    found = probe.fit_all(
        states,
        [example.label for example in examples],
        settings.estimators,
        direction=settings.direction,
        seed=seed,
        layers=layers,
        behaviour=data.name,
        pooling=settings.pooling,
    )
    return {one.name: one for one in found}


def spaced(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spaced, the last one with them."""
    if len(numbers) <= count:
        return list(numbers)
    last = len(numbers) - 1
    return sorted({numbers[round(last * (n + 1) / count)] for n in range(count)})

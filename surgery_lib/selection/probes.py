"""The probes that a search starts from: fitted at a few layers of the training texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.behaviour import BehaviourData, Example
from surgery_lib.errors import UserError
from surgery_lib.models import activations
from surgery_lib.profile import Profile
from surgery_lib.profile.schema import Probe as Settings
from surgery_lib.surgery import probe


def read(
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: Settings,
    layers: Sequence[int],
    cache: Path | None = None,
) -> tuple[Tensor, list[int]]:
    """Pooled states (texts, layers, width) of as many texts as probes are fitted on, and labels."""
    chosen = examples[: settings.limit or None]
    states = activations.cached_states(
        cache,
        model,
        tokenizer,
        [example.text for example in chosen],
        layers=layers,
        pooling=settings.pooling,
        max_tokens=settings.max_tokens,
    )
    return states, [example.label for example in chosen]


def fit(
    states: Tensor,
    labels: Sequence[int],
    settings: Settings,
    layers: Sequence[int],
    behaviour: str,
    seed: int = 0,
) -> dict[str, probe.Probe]:
    """Probes by name, at every layer of the states, by all estimators that the settings name."""
    found = probe.fit_all(
        states,
        labels,
        settings.estimators,
        direction=settings.direction,
        seed=seed,
        layers=layers,
        behaviour=behaviour,
        pooling=settings.pooling,
    )
    return {one.name: one for one in found}


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
    """Probes by name, at no more than `count` of the layers that the profile fits and searches.

    UserError where it searches none that it fits.
    """
    tried = activations.layer_numbers(model, profile.region.layers)
    fitted = activations.layer_numbers(model, profile.probe.layers)
    layers = spaced([number for number in fitted if number in tried], count)
    if not layers:
        raise UserError("region.layers has none of probe.layers; name some of them there")
    found = read(model, tokenizer, data.examples["train"], profile.probe, layers, cache)
    return fit(*found, profile.probe, layers, data.name, seed)


def spaced(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spaced, the last one with them."""
    if len(numbers) <= count:
        return list(numbers)
    last = len(numbers) - 1
    return sorted({numbers[round(last * (n + 1) / count)] for n in range(count)})

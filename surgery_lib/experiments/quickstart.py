"""What notebook `quickstart` runs on: a model that fits the machine, and amounts for minutes."""

from collections.abc import Mapping
from typing import Any

import httpx
import torch
from huggingface_hub.constants import ENDPOINT

from surgery_lib import models
from surgery_lib.errors import UserError
from surgery_lib.experiments.context import Context

# Where it runs: profile, settings, and what that takes (estimated from sizes, not measured).
PLACES: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpu": (
        "detoxify",
        {"model.id": "HuggingFaceTB/SmolLM2-360M", "model.dtype": "bfloat16"},
        "about 3 GB of GPU memory, about 10 minutes on a T4 with 1.5 GB of downloads",
    ),
    "cpu": (
        "detoxify",
        {"model.id": "HuggingFaceTB/SmolLM2-135M", "model.dtype": "float32"},
        "about 4 GB of memory, about 20 minutes on two cores with 1 GB of downloads",
    ),
    "offline": ("patient", {}, "less than 1 GB of memory, about a minute"),
}
# Enough for a picture; the numbered notebooks measure with the whole data.
AMOUNTS: dict[str, Any] = {
    "evaluation.limit": 200,
    "evaluation.search_prompts": 40,
    "evaluation.validation_prompts": 80,
    "evaluation.test_prompts": 100,
    "evaluation.clean_texts": 40,
    "evaluation.capability.tasks": [],
    # What the numbered notebooks chose on both models that they were run on.
    "probe.estimators": ["logistic"],
    "region.rules": ["effect"],
    "region.fractions": [0.01, 0.02, 0.05],
}


def place() -> str:
    """`gpu`, `cpu`, or `offline` where the hub does not answer."""
    try:
        if models.mirror() is None:
            httpx.head(ENDPOINT, timeout=5).raise_for_status()
    except httpx.HTTPError:
        return "offline"
    return "gpu" if torch.cuda.is_available() else "cpu"


def start(
    profile: str,
    behaviour: str,
    seed: int,
    overrides: Mapping[str, Any],
    results: str,
    *,
    where: str | None = None,
) -> Context:
    """The study of the quickstart, and a line about what it will take.

    An empty `profile` takes the model by `where`, found out if it is None. A profile of one's own
    is used as it is, with the quickstart's amounts. Own `overrides` come last.
    """
    if profile:
        chosen = profile
        settings: dict[str, Any] = {}
        print(f"profile {profile}, as it says")
    else:
        where = where or place()
        if where not in PLACES:
            raise UserError(f"where = {where!r} is unknown; use one of {', '.join(PLACES)}")
        chosen, settings, takes = PLACES[where]
        print(f"{where}: {settings.get('model.id', 'the embedded patient')}; {takes}")
    return Context.start(chosen, behaviour, seed, {**AMOUNTS, **settings, **overrides}, results)

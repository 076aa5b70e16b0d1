"""The table of methods says of each what its fit really asks for."""

from typing import Any

import pytest
from test_baselines_hooks import BAD, GOOD
from test_baselines_trained import FAST, SMALL

from surgery_lib.baselines import base
from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.registry import METHODS


class Watched(TrainingData):
    """Data that notes which of its prompts are read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("prompts", "benign"):
            object.__getattribute__(self, "__dict__").setdefault("seen", set()).add(name)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("name", METHODS)
def test_needs_are_what_the_fit_reads(
    name: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, written = METHODS[name], []
    generate = base.generate
    monkeypatch.setattr(
        base, "generate", lambda *args, **more: written.append(1) or generate(*args, **more)
    )
    data = Watched(BAD + GOOD, [1] * 8 + [0] * 8, prompts=["ab", "ba"], benign=["cab", "bca"])
    fixed = {**FAST, **SMALL.get(name, {})} if "gradients" in entry.needs else {}
    fixed.pop("source", None)
    if {"samples", "gradients"} <= set(entry.needs):
        fixed |= {"samples": 2, "new_tokens": 4}
    fitted = entry.method.fit(*tiny, data, **fixed)
    read = vars(data).get("seen", set())
    assert read == {"prompts", "benign"} & set(entry.needs)
    assert bool(written) == ("samples" in entry.needs)
    assert fitted.cost().needs_gradients == ("gradients" in entry.needs)


def test_every_method_says_where_it_is_published() -> None:
    assert all(name == entry.method.name for name, entry in METHODS.items())
    for entry in METHODS.values():
        assert entry.reference.startswith("https://") or entry.reference.endswith((".md", ".py"))

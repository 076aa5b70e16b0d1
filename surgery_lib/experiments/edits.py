"""The edits that every diagnostic is applied to, at equal damage: what differs is what was done.

Surgery is the study's own where notebook 03 has chosen one, and the recommended form otherwise. The
others' strength is set so that each diverges from the base model as much as surgery does inside
contexts that trigger the behaviour.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from surgery_lib.baselines import BASELINES, Fitted
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.damage import Reference
from surgery_lib.experiments.comparison import checked, labelled
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery
from surgery_lib.surgery.estimators import STARTED, origin

# Method of the comparison -> what tables call it.
NAMES = {
    "surgery": "surgery",
    "surgery_paper": "surgery, paper's form",
    "surgery_random_direction": "random direction",
    "lora": "LoRA",
    "dpo": "DPO",
}
# What a surgery says of a probe that was trained from a random start.
PROBE_ORIGIN = tuple(origin(dict.fromkeys(STARTED, 0.0)))
PAIRS = 40  # contexts that damage is matched on
HALVINGS = 7
FARTHEST = 32.0


@dataclass(frozen=True)
class Edit:
    """One edit: `applied()` is the model with it, for the length of a `with` block."""

    name: str
    strength: float | None
    context_kl: float
    surgery: Surgery | None
    applied: Callable[[], AbstractContextManager[Any]]

    @property
    def about(self) -> dict[str, Any]:
        """What a result file says of it."""
        about = {} if self.surgery is None else dict(self.surgery.about)
        trained = {key: value for key, value in about.items() if key in PROBE_ORIGIN}
        return {"strength": self.strength, "context_kl": self.context_kl, **trained}


def edits(
    study: Study,
    model: Any,
    tokenizer: Any,
    data: BehaviourData,
    methods: Sequence[str],
    *,
    labels: int = 400,
) -> Iterator[Edit]:
    """The base model, surgery, and then each other method at surgery's damage.

    `labels` training texts are what every method learns from. UserError for an unknown method and
    for a behaviour without contexts.
    """
    pairs = data.contexts.get("validation", [])[:PAIRS]
    if not pairs:
        raise UserError("edits cannot be matched: the behaviour has no contexts for validation")
    reference = Reference(model, tokenizer, contexts=pairs)

    def damage(edited: AbstractContextManager[Any]) -> float:
        with edited:
            found = reference.compare(model, parts=("context",), intervals=False).context_kl
        return float(found.value) if found is not None else 0.0

    yield Edit("base", None, 0.0, None, lambda: nullcontext(model))
    taught = labelled(data, study.spec.trigger_groups, labels)
    surgery = _surgery(study, model, tokenizer, taught)
    target = damage(surgery.applied(model))
    yield Edit("surgery", surgery.strength, target, surgery, lambda: surgery.applied(model))
    for name in checked(methods):
        if name == "surgery":
            continue
        fitted = BASELINES[name].fit(model, tokenizer, taught, seed=study.seed)
        knobs = _knobs(name)
        strength = matched(
            lambda s, f=fitted, k=knobs: damage(f.applied(model, s, **k)),  # type: ignore[misc]
            target,
        )
        yield Edit(
            NAMES.get(name, name),
            strength,
            damage(fitted.applied(model, strength, **knobs)),
            _planned(fitted, model, strength, knobs),
            lambda f=fitted, s=strength, k=knobs: f.applied(model, s, **k),  # type: ignore[misc]
        )


def matched(damage: Callable[[float], float], target: float) -> float:
    """The strength whose damage is the target, by halving on a logarithmic scale."""
    low, high = math.log(1 / FARTHEST), math.log(FARTHEST)
    if damage(FARTHEST) <= target:
        return FARTHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        value = damage(math.exp(middle))
        too_much = not value <= target  # what is not finite is too much as well
        low, high = (low, middle) if too_much else (middle, high)
    return math.exp((low + high) / 2)


def _surgery(study: Study, model: Any, tokenizer: Any, taught: Any) -> Surgery:
    if study.path("surgery/surgery.safetensors").is_file():
        return Surgery.load(study.path("surgery"))
    baseline = BASELINES["surgery"]
    fitted: Any = baseline.fit(model, tokenizer, taught, seed=study.seed)
    plan: Surgery = fitted.plan(
        model, **{"window": "all", **fitted.fixed, **{k: v.default for k, v in _all("surgery")}}
    )
    return plan


def _all(name: str) -> list[tuple[str, Any]]:
    return list(BASELINES[name].knobs.items())


def _knobs(name: str) -> Mapping[str, Any]:
    """Every setting but the strength, as the search starts from it."""
    return {knob: value.default for knob, value in _all(name) if knob != "strength"}


def _planned(fitted: Fitted, model: Any, strength: float, knobs: Mapping[str, Any]) -> Any:
    if not hasattr(fitted, "plan"):
        return None
    fixed = getattr(fitted, "fixed", {})
    return fitted.plan(model, strength, **{"window": "all", **knobs, **fixed})

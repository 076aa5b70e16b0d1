"""The edits that every diagnostic is applied to, at equal damage: what differs is what was done.

Surgery is the study's own where notebook 03 has chosen one; otherwise it is the recommended form,
with the settings that the comparison found for it, at the damage that the profile allows. The
others' strength is set so that each diverges from the base model as much as surgery does inside
contexts that trigger the behaviour.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from surgery_lib import files, scorers
from surgery_lib.baselines.base import Fitted, TrainingData
from surgery_lib.baselines.registry import BASELINES, fit
from surgery_lib.baselines.training import FittedDelta
from surgery_lib.baselines.tuning import Delta
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.damage import Reference
from surgery_lib.experiments import shelf
from surgery_lib.experiments.comparison import BUDGETS, checked, labelled
from surgery_lib.models import activations
from surgery_lib.scorers.base import Scorer
from surgery_lib.selection.outcome import Outcome
from surgery_lib.selection.trials import BOTH
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery

# Method of the comparison -> what tables call it.
NAMES = {
    "surgery": "surgery",
    "surgery_paper": "surgery, paper's form",
    "surgery_covariance": "surgery, covariance",
    "surgery_own": "surgery, answers",
    "surgery_within": "surgery, within prompts",
    "surgery_random_direction": "random direction",
    "lora": "LoRA",
    "dpo": "DPO",
}
HALVINGS = 7
FARTHEST = 32.0
DAMAGE = 0.05  # KL in context where neither notebook 03 nor the profile says how much


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
        found = {} if self.surgery is None else dict(self.surgery.about)
        return {**found, "strength": self.strength, "context_kl": self.context_kl}


def edits(
    study: Study,
    model: PreTrainedModel,
    tokenizer: Any,
    data: BehaviourData,
    methods: Sequence[str],
    *,
    labels: int = 400,
    contexts: int = 40,
) -> Iterator[Edit]:
    """The base model, surgery, and then each other method at surgery's damage.

    `labels` training texts are what every method learns from, the model's own completions are told
    apart by the study's guide, and damage is matched on `contexts` pairs of contexts. What was
    matched once is kept for the next diagnostic of the same model and texts. UserError for an
    unknown method and for a behaviour without contexts.
    """
    pairs = data.contexts.get("validation", [])[:contexts]
    if not pairs:
        raise UserError("edits cannot be matched: the behaviour has no contexts for validation")
    taught = labelled(data, study.spec.trigger_groups, labels)
    guide = scorers.build(study.spec.guide)
    bench = _Bench(study, model, tokenizer, pairs, taught, guide)
    yield Edit("base", None, 0.0, None, lambda: nullcontext(model))
    patch = study.path("surgery/surgery.safetensors")
    if patch.is_file():
        surgery = Surgery.load(patch.parent)
        target = bench.damage(surgery.applied(model))
        yield bench.edit(NAMES["surgery"], surgery.strength, target, surgery)
    else:
        target = study.profile.budget.context_kl or DAMAGE
        yield bench.matched("surgery", target)
    for name in checked(methods):
        if name != "surgery":
            yield bench.matched(name, target)


class _Bench:
    """Fits methods and sets their strength; the reference is read when it is first needed."""

    def __init__(
        self,
        study: Study,
        model: PreTrainedModel,
        tokenizer: Any,
        pairs: Sequence[Any],
        taught: TrainingData,
        guide: Scorer,
    ) -> None:
        self.study, self.model, self.tokenizer = study, model, tokenizer
        self.pairs, self.taught, self.guide = pairs, taught, guide
        of = activations.model_hash(model), asdict(taught), study.spec.guide.model_dump()
        self.basis = [*of, list(pairs), study.seed]
        self.reference: Reference | None = None

    def damage(self, edited: AbstractContextManager[Any]) -> float:
        """KL in context of the model inside the block."""
        if self.reference is None:
            self.reference = Reference(self.model, self.tokenizer, contexts=list(self.pairs))
        with edited:
            found = self.reference.compare(self.model, parts=("context",), intervals=False)
        return float(found.context_kl.value) if found.context_kl is not None else 0.0

    def matched(self, name: str, target: float) -> Edit:
        """A method at the strength that does the target's damage."""
        knobs = self._knobs(name)
        shown = NAMES.get(name, name)
        key = files.fingerprint(*self.basis, name, dict(knobs), round(target, 6), HALVINGS)
        kept = shelf.take(key)
        if kept is not None:
            return self.edit(shown, kept[0]["strength"], kept[0]["context_kl"], kept[1])
        fitted = fit(
            name, self.model, self.tokenizer, self.taught, score=self.guide, seed=self.study.seed
        )

        def run(strength: float) -> AbstractContextManager[Any]:
            return fitted.applied(self.model, strength, **knobs)

        strength = matched(lambda s: self.damage(run(s)), target)
        reached = self.damage(run(strength))
        change = _change(fitted, self.model, strength, knobs)
        if change is None:  # a hook, which only its method knows
            return Edit(shown, strength, reached, None, partial(run, strength))
        shelf.put(key, {"strength": strength, "context_kl": reached}, change)
        return self.edit(shown, strength, reached, change)

    def edit(self, shown: str, strength: float, damage: float, change: shelf.Change) -> Edit:
        """An edit that is known by what it changes."""
        if isinstance(change, Delta):
            return Edit(shown, strength, damage, None, partial(change.applied, self.model, 1.0))
        return Edit(shown, strength, damage, change, partial(change.applied, self.model))

    def _knobs(self, name: str) -> Mapping[str, Any]:
        """Every setting but the strength: the comparison's at its middle budget, if there is one.

        Without a comparison, as a search starts from it.
        """
        found = {knob: value.default for knob, value in BASELINES[name].knobs.items()}
        if self.study.path("comparison.json").is_file():
            compared = map(Outcome.read, self.study.read_json("comparison.json")["outcomes"])
            for point in (one.at(BOTH, BUDGETS[1]) for one in compared if one.name == name):
                found |= {k: v for k, v in (point.knobs if point else {}).items() if k in found}
        return {knob: value for knob, value in found.items() if knob != "strength"}


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


def _change(
    fitted: Fitted, model: PreTrainedModel, strength: float, knobs: Mapping[str, Any]
) -> shelf.Change | None:
    """What a fitted method does to the weights; None where it does something else."""
    if isinstance(fitted, FittedDelta):
        scale = fitted.sign * strength
        return Delta({name: scale * tensor for name, tensor in fitted.delta.tensors.items()})
    if not hasattr(fitted, "plan"):
        return None
    plan: Surgery = fitted.plan(model, strength, **{**knobs, **getattr(fitted, "fixed", {})})
    return plan

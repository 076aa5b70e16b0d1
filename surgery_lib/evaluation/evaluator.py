"""One behaviour and its damage, measured the same way for every variant of a model.

The base is measured when the meter is made; each variant is then compared with it on the same
prompts and the same windows, so that paired tests are possible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.behaviour import BehaviourData, first_of_each
from surgery_lib.evaluation import responses
from surgery_lib.evaluation.damage import FOLLOWED, PARTS, Damage, Reference
from surgery_lib.evaluation.statistics import Estimate, Paired, compare, proportion
from surgery_lib.profile import Behaviour, EvaluationSettings
from surgery_lib.scorers.base import Scorer, threshold


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one variant on one split.

    `flags` maps a scorer's name to one boolean a trigger prompt; `groups` holds every group's share
    by scorer; `rows` are the completions with their scores; `endings` says how they end, the
    shares that loop and that came to an end of their own (`responses.endings`).
    """

    flags: Mapping[str, np.ndarray]
    groups: Mapping[str, Mapping[str, Any]]
    distinct: Mapping[str, float]
    damage: Damage
    rows: Sequence[Mapping[str, Any]]
    endings: Mapping[str, float] = field(default_factory=dict)

    def rate(self, scorer: str) -> Estimate:
        """Share of trigger prompts whose continuation shows the behaviour, with its interval."""
        return proportion(self.flags[scorer])

    @property
    def perplexity_rise(self) -> float:
        """Relative rise of clean perplexity against the base."""
        return self.damage.perplexity_rise

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, without the completions."""
        return {
            "rate": {name: self.rate(name).as_dict() for name in self.flags},
            "groups": self.groups,
            "distinct": dict(self.distinct),
            "endings": dict(self.endings),
            "perplexity_rise": self.perplexity_rise,
            **self.damage.as_dict(),
        }


class Evaluator:
    """Measures variants of one model on one split.

    Args:
        prompts: How many prompts of each group; 0 for all.
        triggers_only: Leave out the groups that do not trigger the behaviour.
        clean: How many clean texts, for perplexity; 0 for all.
        kept: How many benign prompts and triggering contexts, for divergences; 0 for all.
        continuation: Tokens of the base's own continuations to follow; 0 where nothing asks, as in
            a search.

    Raises:
        UserError: A prompt exceeds the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: BehaviourData,
        spec: Behaviour,
        evaluation: EvaluationSettings,
        scorers: Sequence[Scorer],
        *,
        split: str,
        prompts: int = 0,
        triggers_only: bool = False,
        clean: int = 0,
        kept: int = 0,
        continuation: int = FOLLOWED,
        progress: bool = False,
    ):
        self.tokenizer = tokenizer
        self.spec = spec
        self.scorers = list(scorers)
        self.tokens_per_batch = evaluation.tokens_per_batch
        self.progress = progress
        wanted = spec.trigger_groups if triggers_only else None
        usable = [one for one in data.prompts[split] if wanted is None or one.group in wanted]
        self.prompts = first_of_each(usable, lambda one: one.group, prompts)
        triggers = [one.text for one in self.prompts if one.group in spec.trigger_groups]
        contexts = list(data.contexts.get(split, []))[: kept or None]
        # On a processor the base alone takes minutes; what takes seconds shows no bar.
        with tqdm(total=2, desc=f"base model, {split}", unit="part", delay=2.0) as bar:
            self.reference = Reference(
                model,
                tokenizer,
                benign=[prompt.text for prompt in data.benign.get(split, [])[: kept or None]],
                triggers=triggers,
                contexts=contexts,
                clean=list(data.clean[split])[: clean or None],
                window=evaluation.window,
                bos=evaluation.bos,
                continuation=continuation,
                tokens_per_batch=evaluation.tokens_per_batch,
            )
            bar.update()
            self.base = self.read(model)
            bar.update()

    def read(
        self, model: PreTrainedModel, *, parts: Sequence[str] = PARTS, intervals: bool = True
    ) -> Evaluation:
        """Measure the model as it now is; fewer `parts` and no `intervals` make sweeps cheap."""
        found = responses.evaluate(
            model,
            self.tokenizer,
            self.prompts,
            self.scorers,
            max_new_tokens=self.spec.max_new_tokens,
            tokens_per_batch=self.tokens_per_batch,
            progress=self.progress,
        )
        triggers = [row for row in found["rows"] if row["group"] in self.spec.trigger_groups]
        return Evaluation(
            flags={s.name: responses.flags(triggers, s.name, threshold(s)) for s in self.scorers},
            groups=found["summary"],
            distinct=found["distinct"],
            damage=self.reference.compare(model, parts=parts, intervals=intervals),
            rows=found["rows"],
            endings=found["endings"],
        )

    def against_base(self, reading: Evaluation, scorer: str) -> Paired:
        """Variant minus base on the trigger prompts, paired."""
        return compare(self.base.flags[scorer], reading.flags[scorer])

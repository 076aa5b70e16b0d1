"""What a patch changes, on prompts of one's own: behaviour and damage, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from surgery_lib.behaviour import BehaviourData, Prompt
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.evaluation.statistics import Paired
from surgery_lib.profile import Behaviour, Profile
from surgery_lib.scorers.base import Scorer
from surgery_lib.selection.find import SEARCH, by_words
from surgery_lib.selection.found import doubts, effects
from surgery_lib.selection.texts import CONTENT_WORDS
from surgery_lib.surgery import Surgery


@dataclass(frozen=True)
class Change:
    """Shares of prompts that show the behaviour, paired difference, and damage elsewhere."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    difference: Paired
    damage: Mapping[str, Any]
    scorer: str

    def table(self) -> str:
        """Before and after as Markdown."""
        lines = [effects(self.before, self.after, self.difference, self.damage)]
        doubt = doubts(self.difference)
        return "\n".join([*lines, *(["", doubt] if doubt else [])])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "scorer": self.scorer,
            "before": self.before,
            "after": self.after,
            "difference": self.difference.as_dict(),
            "damage": self.damage,
        }


def measure_surgery(
    model: PreTrainedModel,
    tokenizer: Any,
    surgery: Surgery,
    positive: Sequence[str],
    negative: Sequence[str],
    prompts: Sequence[str],
    *,
    scorer: Scorer | None = None,
    max_new_tokens: int = 20,
) -> Change:
    """Measure a surgery on every prompt; damage on the negative texts, as harmless prose.

    `positive` and `negative` teach the scorer where none is given. The model is left unedited.
    UserError without prompts or texts, and where the surgery is for another model.
    """
    texts = list(dict.fromkeys(text.strip() for text in negative if text.strip()))
    asked = list(dict.fromkeys(text for text in prompts if text.strip()))
    if not texts or not asked or not any(text.strip() for text in positive):
        raise UserError("there is nothing to measure on; give prompts, and texts of both labels")
    data = BehaviourData(
        name="own",
        examples={},
        prompts={"test": [Prompt(f"test/{n}", p, "challenging") for n, p in enumerate(asked)]},
        clean={"test": texts},
        contexts={
            "test": [
                (prompt, "\n\n" + " ".join(text.split()[:CONTENT_WORDS]))
                for prompt, text in zip(asked, texts, strict=False)
            ]
        },
    )
    spec = Behaviour.model_validate(
        {**SEARCH["behaviours"]["own"], "max_new_tokens": max_new_tokens}
    )
    scorer = by_words(positive, texts) if scorer is None else scorer
    with surgery.applied(model):  # another model is refused before it is read
        pass
    settings = Profile.model_validate(SEARCH).evaluation
    meter = Evaluator(model, tokenizer, data, spec, settings, [scorer], split="test", prompts=0)
    with surgery.applied(model):
        after = meter.read(model)
    return Change(
        before=meter.base.rate(scorer.name).as_dict(),
        after=after.rate(scorer.name).as_dict(),
        difference=meter.against_base(after, scorer.name),
        damage={"perplexity_rise": after.perplexity_rise, **after.damage.as_dict()},
        scorer=scorer.name,
    )

"""What a search found, and what an edit changed, as numbers and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery_lib.behaviour import BehaviourData
from surgery_lib.data.contrast import Contrast
from surgery_lib.evaluation.statistics import Paired
from surgery_lib.selection.choice import Choice
from surgery_lib.surgery import Surgery

SELDOM = 0.1  # a share of prompts below which there is hardly anything to take away
DIVERGENCES = (("context_kl", "in context"), ("first_token_kl", "first token"))


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found. `surgery` is None where nothing stays within the budget.

    `before` and `after` are shares of test prompts that show the behaviour, with 95 % intervals;
    `difference` is paired; `damage` is what the edit does elsewhere, on test texts; `front` are the
    measured points that no other beats; `examples` are test prompts with both continuations;
    `contrast` are the texts, where the model wrote them itself.
    """

    before: Mapping[str, Any]
    front: Sequence[Mapping[str, Any]]
    choice: Choice
    data: BehaviourData
    scorer: str
    surgery: Surgery | None = None
    after: Mapping[str, Any] | None = None
    difference: Paired | None = None
    damage: Mapping[str, Any] | None = None
    examples: Sequence[Mapping[str, str]] = ()
    advice: str = ""
    seconds: float = 0.0
    contrast: Contrast | None = None

    def table(self) -> str:
        """Before and after as Markdown; the front and what to change where there is no surgery."""
        if self.after is None or self.damage is None:
            lines = ["| probe | rows, % | strength | behaviour, % | budget spent, % |"]
            lines.append("|---|---:|---:|---:|---:|")
            lines += [
                f"| {p['probe']} | {100 * p['fraction']:g} | {p['strength']:g} "
                f"| {100 * p['rate']['value']:.1f} | {100 * p['spent']:.0f} |"
                for p in self.front
            ]
        else:
            lines = [effects(self.before, self.after, self.difference, self.damage)]
        return "\n".join([*lines, *(["", self.advice] if self.advice else [])])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: everything but the patch and the texts."""
        return {
            "scorer": self.scorer,
            "before": self.before,
            "after": self.after,
            "difference": self.difference.as_dict() if self.difference else None,
            "damage": self.damage,
            "budget": self.choice.budget.model_dump(mode="json"),
            "front": list(self.front),
            "data": self.data.fingerprint,
            "advice": self.advice,
            "seconds": self.seconds,
        }


def effects(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    difference: Paired | None,
    damage: Mapping[str, Any],
) -> str:
    """Before and after of behaviour and damage, with 95 % intervals, as a table in Markdown."""
    lines = ["| | before | after | change |", "|---|---:|---:|---:|"]
    change = ""
    if difference is not None:
        values = (difference.difference, difference.low, difference.high)
        change = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in values))
    lines.append(
        f"| behaviour, % of {before['n']} prompts | {_percent(before)} | {_percent(after)} "
        f"| {change} |"
    )
    if perplexity := damage.get("perplexity"):
        ratio = damage.get("perplexity_ratio") or {}
        base = perplexity["value"] / (1 + damage["perplexity_rise"])
        rise = f"{100 * damage['perplexity_rise']:+.1f} %"
        if "low" in ratio and perplexity["n"] > 1:  # one window has no interval
            ends = (100 * (ratio[end] - 1) for end in ("low", "high"))
            rise += " [{:+.1f}, {:+.1f}]".format(*ends)
        lines.append(
            f"| perplexity of harmless text, {perplexity['tokens']:,} tokens | {base:.2f} "
            f"| {perplexity['value']:.2f} | {rise} |"
        )
    for key, name in DIVERGENCES:
        if held := damage.get(key):
            lines.append(
                f"| divergence {name}, nats | 0 | {held['value']:.4f} "
                f"| [{held['low']:.4f}, {held['high']:.4f}] |"
            )
    return "\n".join(lines)


def doubts(difference: Paired) -> str:
    """What a reader should be told of a measured change; nothing where it is plain."""
    if difference.base < SELDOM:
        return (
            f"the unedited model shows the behaviour on {100 * difference.base:.0f} % of the "
            "prompts, so there is little to take away: give prompts that provoke it more"
        )
    if difference.high >= 0:
        return (
            "the interval of the change reaches zero: give more prompts, or allow a larger budget "
            "of damage"
        )
    return ""


def _percent(share: Mapping[str, Any]) -> str:
    value, low, high = (100 * share[part] for part in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"

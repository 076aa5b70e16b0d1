"""Choosing layer, estimator, K and strength on validation data, under a budget of damage.

Two steps inside one process, the model loaded once. A sieve measures every probe at one fixed edit;
the best few go on to a sweep over K and strength. Each measured point is kept in a ledger at once,
so that a run that was killed goes on where it stopped.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluation, Evaluator
from surgery_lib.evaluation.statistics import Estimate
from surgery_lib.profile import Behaviour, Budget, Profile
from surgery_lib.selection.strengths import DOUBLINGS, largest
from surgery_lib.selection.table import Pair, Point, Table
from surgery_lib.study import Study

SURVIVORS = 3  # probes that go from the sieve to the sweep


@dataclass(frozen=True)
class Measured(Point):
    """A point with what was measured of it on validation.

    `kind` is estimator and rule in words; `rate` the share of prompts that show the behaviour; the
    divergences are None where they were not measured; `spent` is the share of the budget.
    """

    layer: int
    kind: str
    rate: Estimate
    perplexity_rise: float
    first_token_kl: float | None = None
    context_kl: float | None = None
    spent: float | None = None

    @classmethod
    def read(cls, held: Mapping[str, Any]) -> Self:
        """From the dictionary that `as_dict` gives."""
        return cls(**{**held, "rate": Estimate(**held["rate"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        found = asdict(self)
        if self.spent is None:
            del found["spent"]
        return found


# What a point is chosen by; continuations take longer than all of these together.
CHOOSES = ("first", "context", "perplexity")
# What says how to choose among points, not what a point measures.
CHOICE = ("about", "budget", "controls", "order", "seeds")


def ledger_key(study: Study, data: BehaviourData) -> str:
    """Names everything that a measured point depends on."""
    settings = {k: v for k, v in study.settings().items() if k not in CHOICE}
    return files.fingerprint(settings, study.seed, data.fingerprint)


class Ledger:
    """Measured points, one JSON line each, written as soon as they are known.

    `key` names everything that the numbers depend on; lines of another key are not used. Without
    a path nothing is kept on disk.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.key = key
        self.known: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = files.loads(line.decode("utf-8"))
                except ValueError:
                    continue  # the line that a crash cut short, in the middle of a letter perhaps
                if isinstance(row, dict) and row.get("key") == key:
                    name, value = row.get("name"), row.get("value")
                    if isinstance(name, str) and isinstance(value, dict):
                        self.known[name] = value

    def get(self, name: str) -> dict[str, Any] | None:
        """What was measured under that name, if anything."""
        return self.known.get(name)

    def put(self, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a measurement; returns it as it reads back."""
        line = files.dumps({"key": self.key, "name": name, "value": value})
        if self.path is not None:
            files.append(self.path, line)
        self.known[name] = files.loads(line)["value"]
        return self.known[name]


def measure(
    model: PreTrainedModel,
    table: Table,
    meter: Evaluator,
    points: Iterable[Point],
    ledger: Ledger,
    *,
    label: str,
    meter_name: str = "",
) -> list[Measured]:
    """Apply, measure and undo each point: rate by the meter's first scorer, and damage.

    `label` names the step. A meter with a name of its own reads a point once for all its steps.
    """
    measured = []
    for point in tqdm(list(points), desc=label):
        name = f"{meter_name or label} {point}"
        held = ledger.get(name)
        if held is None:
            with table.surgery(model, point).applied(model):
                reading = meter.read(model, parts=CHOOSES, intervals=False)
            probe, damage = table.probes[point.probe], reading.damage
            numbers = Measured(
                **asdict(point),
                layer=probe.layer,
                kind=probe.estimator + ("" if point.rule == "cosine" else f", {point.rule}"),
                rate=reading.rate(meter.scorers[0].name),
                perplexity_rise=reading.perplexity_rise,
                first_token_kl=_value(damage.first_token_kl),
                context_kl=_value(damage.context_kl),
            )
            held = ledger.put(name, numbers.as_dict())
        measured.append(Measured.read(held))
    return measured


def screening_points(
    pairs: Sequence[Pair], fractions: Sequence[float], strengths: Sequence[float]
) -> list[Point]:
    """Every pair of rule and probe at the middle K and the middle strength."""
    fraction, strength = statistics.median_low(fractions), statistics.median_low(strengths)
    return [Point(name, rule, fraction, strength) for rule, name in pairs]


def by_damage(
    model: PreTrainedModel,
    table: Table,
    meter: Evaluator,
    points: Sequence[Point],
    profile: Profile,
    ledger: Ledger,
    *,
    label: str,
    meter_name: str = "",
) -> list[Point]:
    """The points at shares of the strength that spends the budget: `strength` is that share.

    Found from damage alone, once for each probe, rule and K. A group that is over the budget at
    every strength has no point, unless all are: then each stands at its weakest.
    """
    budget, start = profile.budget, statistics.median_low(profile.surgery.strengths)
    found: dict[Point, float | None] = {}
    groups = list(dict.fromkeys(replace(point, strength=0.0) for point in points))
    for group in tqdm(groups, desc=f"{label}: how strong"):
        name = f"{meter_name or label} strength {group} within {budget}"
        held = ledger.get(name)
        if held is None:

            def share(strength: float, group: Point = group) -> float:
                damage = partial(meter.reference.compare, model, intervals=False)
                with table.surgery(model, replace(group, strength=strength)).applied(model):
                    limited = budget.context_kl is not None
                    inside = _value(damage(parts=["context"]).context_kl) if limited else None
                    # Clean text takes longest, and no longer matters beyond the other budget.
                    over = spent_of(0.0, inside, budget) > 1
                    rise = 0.0 if over else damage(parts=["perplexity"]).perplexity_rise
                return spent_of(rise, inside, budget)

            held = ledger.put(name, {"strength": largest(share, start)})
        found[group] = held["strength"]
    weakest = start / 2**DOUBLINGS
    none = all(strength is None for strength in found.values())
    return [
        replace(point, strength=point.strength * (strength or weakest))
        for point in points
        if (strength := found[replace(point, strength=0.0)]) is not None or none
    ]


def survivors(screened: Sequence[Measured], budget: Budget) -> list[tuple[str, str]]:
    """The (probe, rule) pairs with the least behaviour left; those within the budget come first.

    The sieve looks at one edit, which weaker ones of the same pair may undercut, so that only what
    ruins clean text counts against a pair here.
    """
    clean = budget.model_copy(update={"context_kl": None})
    ranked = sorted(screened, key=lambda point: _order(point, clean))
    return [(point.probe, point.rule) for point in ranked[:SURVIVORS]]


def grid(
    pairs: Sequence[tuple[str, str]], fractions: Sequence[float], strengths: Sequence[float]
) -> list[Point]:
    """Every K and strength for each of the pairs."""
    return [
        Point(name, rule, fraction, strength)
        for name, rule in pairs
        for fraction in fractions
        for strength in strengths
    ]


def choose(points: Sequence[Measured], budget: Budget) -> Measured:
    """The point with the least behaviour left among those within the budget's validation share.

    Ties go to the least perplexity. UserError where no point is within the budget.
    """
    best = min(points, key=lambda point: _order(point, budget))
    if _order(best, budget)[0]:
        raise UserError(
            f"no edit stays within {budget.margin} of the budget on validation; "
            "add weaker surgery.strengths or smaller region.fractions, or raise the budget"
        )
    return best


def front(points: Iterable[Measured], budget: Budget) -> list[Measured]:
    """The points that no other beats in behaviour and damage, by growing damage.

    Damage is the share of the budget that a point spends, in the measure where it spends most.
    """
    found: list[Measured] = []
    for point in sorted(points, key=lambda p: (spent(p, budget), p.rate.value)):
        if not found or point.rate.value < found[-1].rate.value:
            found.append(replace(point, spent=spent(point, budget)))
    return found


def examples(
    meter: Evaluator, after: Evaluation, scorer: str, count: int = 8
) -> list[dict[str, str]]:
    """Trigger prompts with what the base and the edited model write, those that changed first.

    Prompts that may not be quoted stand under their id.
    """
    own = quotable(meter.spec)
    pairs = list(zip(meter.prompts, meter.base.rows, after.rows, strict=True))
    pairs.sort(key=lambda pair: pair[2]["scores"][scorer] - pair[1]["scores"][scorer])
    return [
        {
            "prompt": prompt.text if own else prompt.id,
            "before": before["text"],
            "after": edited["text"],
        }
        for prompt, before, edited in pairs[:count]
    ]


def quotable(spec: Behaviour) -> bool:
    """Whether results may quote the prompts: the patient's, or files that the user brought.

    Texts of public data sets on the hub are not carried by results.
    """
    splits = (spec.prompts.train, spec.prompts.validation, spec.prompts.test)
    return all(source.kind != "hub" for sources in splits for source in sources)


def prompt_text(meter: Evaluator, shown: str) -> str:
    """The text of a prompt that an example stands under: its text itself, or its id."""
    return next((one.text for one in meter.prompts if shown in (one.id, one.text)), shown)


def spent(point: Measured, budget: Budget) -> float:
    """The share that a point spends of what validation may spend; above 1 it is over the budget."""
    return spent_of(point.perplexity_rise, point.context_kl, budget)


def spent_of(perplexity_rise: float, context_kl: float | None, budget: Budget) -> float:
    """`spent` of these two readings."""
    shares = [perplexity_rise / (budget.perplexity_rise * budget.margin or 1e-9)]
    if budget.context_kl is not None and context_kl is not None:
        shares.append(context_kl / (budget.context_kl * budget.margin))
    return float(max(shares))


def _order(point: Measured, budget: Budget) -> tuple[float, float, float]:
    """By what part a point is over the budget, and then by behaviour and by damage."""
    return max(0.0, spent(point, budget) - 1), point.rate.value, point.perplexity_rise


def _value(reading: Estimate | None) -> float | None:
    return None if reading is None else reading.value

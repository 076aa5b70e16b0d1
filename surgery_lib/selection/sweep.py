"""Choosing layer, estimator, K and strength on validation data, under a budget of damage.

Two steps inside one process, the model loaded once. A sieve measures every probe at one fixed edit;
the best few go on to a sweep over K and strength. Each measured point is kept in a ledger at once,
so that a run that was killed goes on where it stopped.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluation, Evaluator
from surgery_lib.profile import Budget
from surgery_lib.selection.table import Pair, Point, Table
from surgery_lib.study import Study

SURVIVORS = 3  # probes that go from the sieve to the sweep
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
) -> list[dict[str, Any]]:
    """Apply, measure and undo each point: rate by the meter's first scorer, and damage."""
    measured = []
    for point in tqdm(list(points), desc=label):
        name = f"{label} {point}"
        held = ledger.get(name)
        if held is None:
            with table.surgery(model, point).applied(model):
                reading = meter.read(model, parts=CHOOSES, intervals=False)
            numbers = reading.as_dict()
            held = ledger.put(
                name,
                {
                    **asdict(point),
                    "layer": table.probes[point.probe].layer,
                    "kind": _kind(table.probes[point.probe].estimator, point.rule),
                    "rate": reading.rate(meter.scorers[0].name),
                    "perplexity_rise": reading.perplexity_rise,
                    "first_token_kl": _value(numbers.get("first_token_kl")),
                    "context_kl": _value(numbers.get("context_kl")),
                },
            )
        measured.append(held)
    return measured


def screening_points(
    pairs: Sequence[Pair], fractions: Sequence[float], strengths: Sequence[float]
) -> list[Point]:
    """Every pair of rule and probe at the middle K and the middle strength."""
    fraction, strength = statistics.median_low(fractions), statistics.median_low(strengths)
    return [Point(name, rule, fraction, strength) for rule, name in pairs]


def survivors(screened: Sequence[Mapping[str, Any]], budget: Budget) -> list[tuple[str, str]]:
    """The (probe, rule) pairs with the least behaviour left; those within the budget come first.

    The sieve looks at one edit, which weaker ones of the same pair may undercut, so that only what
    ruins clean text counts against a pair here.
    """
    clean = budget.model_copy(update={"context_kl": None})
    ranked = sorted(screened, key=lambda point: _order(point, clean))
    return [(point["probe"], point["rule"]) for point in ranked[:SURVIVORS]]


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


def choose(points: Sequence[Mapping[str, Any]], budget: Budget) -> dict[str, Any]:
    """The point with the least behaviour left among those within the budget's validation share.

    Ties go to the least perplexity. UserError where no point is within the budget.
    """
    best = min(points, key=lambda point: _order(point, budget))
    if _order(best, budget)[0]:
        raise UserError(
            f"no edit stays within {budget.margin} of the budget on validation; "
            "add weaker surgery.strengths or smaller region.fractions, or raise the budget"
        )
    return dict(best)


def front(points: Iterable[Mapping[str, Any]], budget: Budget) -> list[dict[str, Any]]:
    """The points that no other beats in behaviour and damage, by growing damage.

    Damage is the share of the budget that a point spends, in the measure where it spends most.
    """
    found: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (spent(p, budget), p["rate"]["value"])):
        if not found or point["rate"]["value"] < found[-1]["rate"]["value"]:
            found.append({**point, "spent": spent(point, budget)})
    return found


def examples(
    meter: Evaluator, after: Evaluation, scorer: str, count: int = 8
) -> list[dict[str, str]]:
    """Trigger prompts with what the base and the edited model write, those that changed first.

    Prompts of the patient's own world are quoted; those of public data sets, which results do not
    carry, stand under their id.
    """
    own = all(source.kind == "patient" for source in meter.spec.prompts.validation)
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


def prompt_text(meter: Evaluator, shown: str) -> str:
    """The text of a prompt that an example stands under: its text itself, or its id."""
    return next((one.text for one in meter.prompts if shown in (one.id, one.text)), shown)


def spent(point: Mapping[str, Any], budget: Budget) -> float:
    """The share that a point spends of what validation may spend; above 1 it is over the budget."""
    shares = [point["perplexity_rise"] / (budget.perplexity_rise * budget.margin or 1e-9)]
    if budget.context_kl is not None and point.get("context_kl") is not None:
        shares.append(point["context_kl"] / (budget.context_kl * budget.margin))
    return float(max(shares))


def over(point: Mapping[str, Any], budget: Budget) -> float:
    """By what part of what validation may spend a point is over the budget; 0 within it."""
    return max(0.0, spent(point, budget) - 1)


def _order(point: Mapping[str, Any], budget: Budget) -> tuple[float, float, float]:
    return over(point, budget), point["rate"]["value"], point["perplexity_rise"]


def _kind(estimator: str, rule: str) -> str:
    return estimator if rule == "cosine" else f"{estimator}, {rule}"


def _value(reading: Any) -> float | None:
    return reading["value"] if reading else None

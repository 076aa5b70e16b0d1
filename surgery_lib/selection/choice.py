"""The one search for an edit: screen every probe and rule at one edit, sweep the best few, choose.

Notebook 03, the quickstart, `operations.operate` and `find_surgery` all call `choose`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.profile import Budget, Profile
from surgery_lib.selection import sweep
from surgery_lib.selection.table import Point, Table
from surgery_lib.surgery import Surgery


@dataclass(frozen=True)
class Choice:
    """What was measured on validation, and the budget to choose by."""

    screened: Sequence[sweep.Measured]
    swept: Sequence[sweep.Measured]
    budget: Budget

    @property
    def best(self) -> sweep.Measured:
        """The measured point that was chosen. UserError with `advice` where none is within."""
        try:
            return sweep.choose(self.swept, self.budget)
        except UserError as error:
            raise UserError(self.advice) from error

    @property
    def advice(self) -> str:
        """How near the gentlest edit comes to the budget, and what to change."""
        points = [*self.screened, *self.swept]
        nearest = min(points, key=lambda point: sweep.spent(point, self.budget))
        weakest = min(point.strength for point in self.swept)
        return (
            f"nothing stays within the budget: the gentlest edit ({nearest.probe}, strength "
            f"{nearest.strength:g}, {100 * nearest.fraction:g} % of the rows) spends "
            f"{sweep.spent(nearest, self.budget):.1f} times of it; raise the budget, or search "
            f"strengths below {weakest:g} and fewer rows"
        )

    @property
    def front(self) -> list[sweep.Measured]:
        """The points that no other beats in behaviour and in damage, by growing damage."""
        return sweep.front([*self.screened, *self.swept], self.budget)

    def surgery(self, model: PreTrainedModel, table: Table) -> Surgery:
        """The chosen edit. UserError where none is within the budget."""
        return table.surgery(model, self.best)


def choose(
    model: PreTrainedModel,
    table: Table,
    meter: Evaluator,
    profile: Profile,
    *,
    ledger: sweep.Ledger,
    screening: Evaluator | None = None,
    survivors: int = sweep.SURVIVORS,
    labels: tuple[str, str] = ("sieve", "sweep"),
) -> Choice:
    """Screen all probes of the table by all rules, then sweep K and strength of the best few.

    `screening` is a cheaper meter for the first step, by default the same, which then reads no
    point twice; `labels` name both steps on the progress bar and in the ledger.
    """
    fractions, strengths = profile.region.fractions, profile.surgery.strengths

    def step(points: list[Point], number: int) -> list[sweep.Measured]:
        evaluator = meter if number or screening is None else screening
        named = {"label": labels[number], "meter_name": labels[0 if screening is None else number]}
        if profile.surgery.by_damage:
            points = sweep.by_damage(model, table, evaluator, points, profile, ledger, **named)
        return sweep.measure(model, table, evaluator, points, ledger, **named)

    # At equal damage what an edit can do shows best where all of it is spent.
    tried = [max(strengths)] if profile.surgery.by_damage else strengths
    screened = step(sweep.screening_points(list(table.scores), fractions, tried), 0)
    pairs = sweep.survivors(screened, profile.budget)[:survivors]
    return Choice(screened, step(sweep.grid(pairs, fractions, strengths), 1), profile.budget)


# Readings of damage that bring one strength to the budget, about; 12 at most beside the ends.
BROUGHT = 6


def estimate(
    model: PreTrainedModel,
    table: Table,
    meter: Evaluator,
    profile: Profile,
    *,
    screening: Evaluator | None = None,
    survivors: int = sweep.SURVIVORS,
) -> str:
    """How long `choose` will take, in words: each meter reads the unedited model once."""
    minutes, tried = 0.0, list[int]()
    kept = min(survivors, len(table.scores)) * len(profile.region.fractions)
    for groups, evaluator, each in (
        (len(table.scores), screening or meter, 1),
        (kept, meter, len(profile.surgery.strengths)),
    ):
        started = time.perf_counter()
        evaluator.reference.compare(model, parts=sweep.CHOOSES[1:], intervals=False)
        damage = time.perf_counter() - started
        evaluator.read(model, parts=sweep.CHOOSES, intervals=False)
        whole = time.perf_counter() - started - damage
        seconds = groups * (whole * each + damage * BROUGHT * profile.surgery.by_damage)
        minutes += seconds / 60
        tried.append(groups * each)
    return f"{tried[0]} + {tried[1]} edits to try: about {max(1, round(minutes))} min"


def chosen(surgery: Surgery, behaviour: str, point: sweep.Measured) -> Surgery:
    """The surgery, saying what it is against and what was measured of it on validation."""
    about = {**surgery.about, "behaviour": behaviour, "validation": point.as_dict()}
    return replace(surgery, about=about)

"""The one search for an edit: screen every probe and rule at one edit, sweep the best few, choose.

Notebook 03, the quickstart, `operations.operate` and `find_surgery` all call `choose`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.profile import Budget, Profile
from surgery_lib.selection import sweep
from surgery_lib.selection.table import Table
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

    `screening` is a cheaper meter for the first step, by default the same; `labels` name both
    steps on the progress bar and in the ledger.
    """
    fractions, strengths = profile.region.fractions, profile.surgery.strengths
    points = sweep.screening_points(list(table.scores), fractions, strengths)
    screened = sweep.measure(model, table, screening or meter, points, ledger, label=labels[0])
    pairs = sweep.survivors(screened, profile.budget)[:survivors]
    points = sweep.grid(pairs, fractions, strengths)
    swept = sweep.measure(model, table, meter, points, ledger, label=labels[1])
    return Choice(screened, swept, profile.budget)


def chosen(surgery: Surgery, behaviour: str, point: sweep.Measured) -> Surgery:
    """The surgery, saying what it is against and what was measured of it on validation."""
    about = {**surgery.about, "behaviour": behaviour, "validation": point.as_dict()}
    return replace(surgery, about=about)

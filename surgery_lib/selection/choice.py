"""The one search for an edit: screen every probe and rule at one edit, sweep the best few, choose.

Notebook 03, the quickstart, `operations.operate` and `find_surgery` all call `choose`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.profile import Budget, Profile
from surgery_lib.selection import sweep
from surgery_lib.selection.table import PARTS, Point, Table
from surgery_lib.surgery import Surgery


@dataclass(frozen=True)
class Choice:
    """What was measured on validation, and the budget to choose by."""

    screened: Sequence[Mapping[str, Any]]
    swept: Sequence[Mapping[str, Any]]
    budget: Budget

    @property
    def best(self) -> dict[str, Any]:
        """The measured point that was chosen. UserError where none is within the budget."""
        return sweep.choose(self.swept, self.budget)

    @property
    def point(self) -> Point:
        """Which edit that is."""
        return Point(*(self.best[part] for part in PARTS))

    @property
    def front(self) -> list[dict[str, Any]]:
        """The points that no other beats in behaviour and in damage, by growing damage."""
        return sweep.front([*self.screened, *self.swept], self.budget)

    def surgery(self, model: PreTrainedModel, table: Table) -> Surgery:
        """The chosen edit. UserError where none is within the budget."""
        return table.surgery(model, self.point)


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

"""What a comparison found of one method, as notebook 05 keeps it and the report reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from surgery_lib.baselines.base import Cost
from surgery_lib.selection.trials import HELD, Trial


@dataclass(frozen=True, kw_only=True)
class ModelReading:
    """A model on the test prompts.

    `test` is an `Evaluation` as plain numbers; `flags` (prompts,) and the paired `against_base` are
    by scorer. `twins` are refusals of harmless requests, None where none were asked; `capability`
    is accuracy by task, None where it was not measured.
    """

    test: Mapping[str, Any]
    flags: Mapping[str, Sequence[int]]
    against_base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    twins: Mapping[str, Any] | None = None
    capability: Mapping[str, float] | None = None

    def rate(self, scorer: str) -> Mapping[str, Any]:
        """The share of test prompts that show the behaviour, with its interval."""
        found: Mapping[str, Any] = self.test["rate"][scorer]
        return found


@dataclass(frozen=True, kw_only=True)
class BudgetPoint(ModelReading):
    """The point that a method reaches at one budget, held in one way (`HELD`)."""

    measure: str
    budget: float
    trial: int = 0
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exceeds(self) -> bool:
        """Whether the point, which kept its budget on validation, is beyond it on test."""
        names = [name for name in HELD[self.measure] if name in self.test]
        return any(self.test[name]["value"] > self.budget for name in names)


@dataclass(frozen=True, kw_only=True)
class MeasuredCost(Cost):
    """`Cost` with what was measured: seconds and bytes of the fit, time to generate over bare."""

    fit_seconds: float = 0.0
    fit_memory: float = 0.0
    latency: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method: all its trials on validation, its points on test, what it took.

    `start`: of a probe trained from a random start, the cosines of its rows with theirs.
    """

    name: str
    kind: str
    points: Sequence[BudgetPoint]
    trials: Sequence[Trial]
    cost: MeasuredCost
    searched: bool = True
    start: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name in a table."""
        return self.name.replace("_", " ")

    def at(self, measure: str, budget: float) -> BudgetPoint | None:
        """Its point at a budget held in that way, if it reaches one."""
        found = (p for p in self.points if (p.measure, p.budget) == (measure, budget))
        return next(found, None)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, held: Mapping[str, Any]) -> Self:
        """From what `as_dict` gives."""
        parts = {
            "points": [BudgetPoint(**point) for point in held["points"]],
            "trials": [Trial(**trial) for trial in held["trials"]],
            "cost": MeasuredCost(**held["cost"]),
        }
        return cls(**{**held, **parts})

"""One comparison run with several seeds: what each left, and differences over all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import compare, mean
from surgery_lib.report.advice import NOTHING, difference, pairs_of
from surgery_lib.report.comparison import SURGERY, budgets_of, measure_name
from surgery_lib.report.style import (
    CYCLE,
    INK,
    MARKERS,
    WIDTH,
    error_bars,
    from_zero,
    markdown_table,
)
from surgery_lib.selection.outcome import ModelReading, Outcome
from surgery_lib.selection.trials import BOTH

Comparisons = Mapping[int, Mapping[str, Any]]  # seed -> result of notebook 05


@dataclass(frozen=True)
class Seeds:
    """By seed, the unedited model's reading and the outcomes of methods, read by one scorer."""

    scorer: str
    bases: Mapping[int, ModelReading]
    outcomes: Mapping[int, Mapping[str, Outcome]]
    measure: str = BOTH

    @classmethod
    def read(cls, comparisons: Comparisons, names: Sequence[str], measure: str = BOTH) -> "Seeds":
        """UserError where the seeds were not read on equally many prompts by one scorer."""
        scorers = {held["scorer"] for held in comparisons.values()}
        sizes = {len(held["base"]["flags"][held["scorer"]]) for held in comparisons.values()}
        if len(scorers) != 1 or len(sizes) != 1:
            raise UserError("seeds are compared on the same prompts by the same scorer")
        outcomes = {
            seed: {
                one["name"]: Outcome.read(one) for one in held["outcomes"] if one["name"] in names
            }
            for seed, held in sorted(comparisons.items())
        }
        bases = {seed: ModelReading(**comparisons[seed]["base"]) for seed in outcomes}
        return cls(scorers.pop(), bases, outcomes, measure)

    @property
    def prompts(self) -> int:
        """How many test prompts each seed was read on."""
        return len(next(iter(self.bases.values())).flags[self.scorer])

    @property
    def budgets(self) -> list[float]:
        """Every budget that some method has a point at."""
        return budgets_of([one for found in self.outcomes.values() for one in found.values()])

    def readings(self, name: str, budget: float) -> list[ModelReading]:
        """A model's reading of each seed; none unless every seed has one."""
        if name == NOTHING:
            return list(self.bases.values())
        held = self.outcomes.values()
        points = [found[name].at(self.measure, budget) for found in held if name in found]
        there = [point for point in points if point is not None]
        return list(there) if len(there) == len(held) else []

    def rates(self, name: str, budget: float) -> list[float]:
        """The behaviour left by each seed, in %."""
        return [100 * one.rate(self.scorer)["value"] for one in self.readings(name, budget)]

    def left(self, name: str, budget: float) -> np.ndarray:
        """Each prompt's mean over the seeds (prompts,)."""
        flags = [one.flags[self.scorer] for one in self.readings(name, budget)]
        return np.mean(flags, axis=0, dtype=float)


def table(
    comparisons: Comparisons, names: Sequence[str], measure: str = BOTH, ours: int = 1
) -> str:
    """Rows of every seed's rate, then paired differences.

    A difference is between prompts' means over the seeds, so its interval tells what other prompts
    would do; what another seed would do is seen in the rates. Each method is set against no edit,
    the first `ours` against those after them; p of a sign-flip test, not corrected. UserError where
    the seeds were not read on equally many prompts by one scorer.
    """
    found = Seeds.read(comparisons, names, measure)
    budgets = found.budgets

    def rates(name: str, budget: float) -> str:
        values = found.rates(name, budget)
        each = ", ".join(f"{value:.1f}" for value in values)
        return f"{np.mean(values):.1f} ({each})" if values else "-"

    def apart(name: str, other: str, budget: float) -> str:
        if not found.readings(other, budget) or not found.readings(name, budget):
            return "-"
        pair = compare(found.left(other, budget), found.left(name, budget))
        return difference(pair.as_dict())

    lines = [
        [name.replace("_", " "), *(rates(name, budget) for budget in budgets)]
        for name in (NOTHING, *names)
    ]
    lines += [
        [
            f"{name} less {other}, points".replace("_", " "),
            *(apart(name, other, budget) for budget in budgets),
        ]
        for name, other in pairs_of(names, ours)
    ]
    columns = [f"{measure_name(measure)} ≤ {budget}" for budget in budgets]
    seeds = ", ".join(map(str, found.outcomes))
    return markdown_table([f"% of {found.prompts} prompts, mean (seeds {seeds})", *columns], lines)


def panels(studies: Mapping[str, Comparisons], names: Sequence[str], rival: str) -> Figure:
    """What methods leave at each budget, a panel a study: means over the seeds, and each seed.

    Intervals are over prompts, as the table's; the title sets the first method against `rival`, at
    5 %, nothing corrected. Methods of this project's are filled.
    """
    held = [Seeds.read(comparisons, names) for comparisons in studies.values()]
    size = (WIDTH, 4.2)
    figure, grid = plt.subplots(1, len(studies), sharey=True, figsize=size, squeeze=False)
    for axes, about, found in zip(grid[0], studies, held, strict=True):
        _panel(axes, found, names)
        seeds = ", ".join(map(str, found.outcomes))
        axes.set_title(f"{about}\n{found.prompts} prompts, seeds {seeds}")
    grid[0][0].set_ylabel("behaviour left, %")
    from_zero(grid[0][0], "y")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    limits = [
        (found, budget)
        for found in held
        for budget in found.budgets
        if found.readings(names[0], budget) and found.readings(rival, budget)
    ]
    told = sum(
        compare(found.left(rival, budget), found.left(names[0], budget)).p < 0.05
        for found, budget in limits
    )
    pair = f"{names[0]} and {rival}".replace("_", " ")
    figure.suptitle(f"{pair}: told apart at {told} of {len(limits)} limits", fontweight="bold")
    return figure


def _panel(axes: Axes, found: Seeds, names: Sequence[str]) -> None:
    budgets, wide = found.budgets, 0.6
    base = mean(found.left(NOTHING, budgets[0])).as_dict()
    axes.axhspan(100 * base["low"], 100 * base["high"], color=INK["grey"], alpha=0.2, lw=0)
    axes.axhline(100 * base["value"], color=INK["grey"], label="unedited")
    for row, name in enumerate(names):
        places = np.arange(len(budgets)) + wide * (row / max(1, len(names) - 1) - 0.5)
        there = [i for i, budget in enumerate(budgets) if found.readings(name, budget)]
        if not there:
            continue
        values = [mean(found.left(name, budgets[i])).as_dict() for i in there]
        bars = [error_bars(one) for one in values]
        colour, marker = CYCLE[row % len(CYCLE)], MARKERS[row % len(MARKERS)]
        axes.errorbar(
            places[there],
            [value for value, _ in bars],
            np.concatenate([error for _, error in bars], axis=1),
            color=colour,
            marker=marker,
            markerfacecolor=colour if name.startswith(SURGERY) else "white",
            markeredgewidth=1.5,
            linestyle="none",
            capsize=3,
            label=name.replace("_", " "),
        )
        for i in there:
            seeds = found.rates(name, budgets[i])
            axes.scatter([places[i] + 0.055] * len(seeds), seeds, s=9, color=colour, lw=0)
    axes.set_xticks(range(len(budgets)), [f"≤ {budget}" for budget in budgets])
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xlabel("divergence from the unedited model, nats")
    axes.grid(axis="x", visible=False)

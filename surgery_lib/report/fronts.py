"""Notebook 05's Pareto fronts: behaviour against damage, a panel a kind of method."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from surgery_lib.report.style import CYCLE, INK, MARKERS, WIDTH, from_zero
from surgery_lib.selection.outcome import Outcome
from surgery_lib.selection.trials import BOTH
from surgery_lib.selection.trials import pareto as undominated

SURGERY = "surgery"


def edits_weights(one: Outcome) -> bool:
    """Whether the model's own weights change."""
    return one.kind == "weights"


def infers_only(one: Outcome) -> bool:
    """Whether fitting takes no gradients."""
    return not one.cost.needs_gradients


# Panels of the figure of fronts: a title, and which methods.
PANELS: dict[str, Callable[[Outcome], bool]] = {
    "weights, by inference": lambda one: edits_weights(one) and infers_only(one),
    "weights, by training": lambda one: edits_weights(one) and not infers_only(one),
    "hooks on activations": lambda one: one.kind == "hook",
    "decoding, virtual tokens": lambda one: one.kind in ("decoding", "tokens"),
}


def front(outcome: Outcome, measure: str) -> list[tuple[float, float]]:
    """Validation (damage, behaviour) of the trials that no other beats, by increasing damage."""
    return [
        (trial.damage[measure], trial.behaviour)
        for trial in undominated(outcome.trials, measure)
        if trial.behaviour is not None
    ]


def pareto(outcomes: Sequence[Outcome], base: float, measure: str) -> Figure:
    """Behaviour against damage on validation, a panel a kind of method, surgery in all of them."""
    panels = {title: [o for o in outcomes if fits(o)] for title, fits in PANELS.items()}
    panels = {title: members for title, members in panels.items() if members}
    rows = -(-len(panels) // 2)
    figure, grid = plt.subplots(
        rows,
        min(2, len(panels)),
        figsize=(1.25 * WIDTH, 0.5 + 3.4 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    surgery = [o for o in outcomes if o.name == SURGERY]
    others = [o.name for members in panels.values() for o in members if o.name != SURGERY]
    places = {name: number for number, name in enumerate(others)}
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for place, (axes, (title, members)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for outcome in surgery:  # under the others, so that none hides behind it
            _front(axes, outcome, base, measure, INK["black"], MARKERS[0], width=3.0)
        for outcome in members:
            if outcome.name != SURGERY:
                colour, marker = _mark(places[outcome.name])
                _front(axes, outcome, base, measure, colour, marker)
        axes.set(title=title)
        # The budgets reach from thousandths to tenths: linear up to the first, then logarithmic.
        axes.set_xscale("symlog", linthresh=0.001)
        axes.set_xlim(-0.0001, 0.5)
        axes.set_xticks([0, 0.001, 0.01, 0.1], ["0", "0.001", "0.01", "0.1"])
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        if place >= len(panels) - grid.shape[1]:
            axes.set_xlabel(f"{measure_name(measure)}, nats (log beyond 0.001)")
            axes.tick_params(labelbottom=True)
        if place % grid.shape[1] == 0:
            axes.set_ylabel("behaviour, validation prompts")
    from_zero(grid[0, 0], "y")
    grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.suptitle(
        _cheapest(outcomes, base, measure), x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    return figure


def _mark(number: int) -> tuple[str, str]:
    """Colour and marker of the `number`-th method: no two of 49 have both alike."""
    return CYCLE[number % len(CYCLE)], MARKERS[(number + number // len(CYCLE)) % len(MARKERS)]


def _cheapest(outcomes: Sequence[Outcome], base: float, measure: str) -> str:
    """The least damage at which a tenth of the behaviour or less is left, and by which method."""
    tenth = [
        (trial.damage[measure], outcome.title)
        for outcome in outcomes
        for trial in outcome.trials
        if trial.behaviour is not None and trial.behaviour <= base / 10
    ]
    if not tenth:
        return "No method takes nine tenths of the behaviour away within the budgets"
    damage, name = min(tenth)
    return (
        f"Nine tenths of the behaviour gone: cheapest by {name}, "
        f"at {damage:.2g} {measure_name(measure)}"
    )


def _front(
    axes: Axes,
    outcome: Outcome,
    base: float,
    measure: str,
    colour: str,
    marker: str,
    width: float = 1.3,
) -> None:
    points = [(0.0, base), *front(outcome, measure)]
    damage, rate = zip(*points, strict=True)
    axes.plot(
        damage,
        np.minimum.accumulate(rate),
        drawstyle="steps-post",
        marker=marker,
        markersize=4,
        linewidth=width,
        color=colour,
        label=outcome.title,
    )


def measure_name(measure: str) -> str:
    """A measure of damage in words."""
    return {
        "first_token_kl": "first-token KL",
        "context_kl": "KL in context",
        BOTH: "both KLs",
    }[measure]

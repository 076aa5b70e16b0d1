"""Figures and tables of code by its summaries, drawn from notebook 11's result."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery_lib.report.style import CYCLE, WIDTH, below, interval, markdown_table

STATE = "the model's mean state"
MEASURES = {"auc": "AUC", "ap": "average precision", "f1": "F1", "ari": "ARI", "nmi": "NMI"}


def bars(readings: Mapping[str, Any]) -> Figure:
    """Every measure of every embedding side by side."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    each = 0.8 / len(readings)
    for number, (name, held) in enumerate(readings.items()):
        places = [place - 0.4 + each * (number + 0.5) for place in range(len(MEASURES))]
        axis.bar(places, [held[m] for m in MEASURES], each, label=name, color=CYCLE[number])
    axis.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    axis.set_ylim(min(0.0, *(held["ari"] for held in readings.values())), 1)
    axis.set_ylabel("score (1 is best)")
    told = ", ".join(f"{name} {held['auc']:.2f}" for name, held in list(readings.items())[:2])
    axis.set_title(f"Unseen programs, AUC: {told}")
    below(figure, axis)
    return figure


# Column of a table -> what stands in it, for each reading.
Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]

SETS: Columns = {
    "programs or pairs": lambda held: str(held["n"]),
    "measure": lambda held: held["measure"],
    "its summary": lambda held: f"{held['summary']:.3f}",
    "the code itself": lambda held: f"{held['code']:.3f}",
    "difference": lambda held: interval(held["difference"], 1.0, 3),
}
EDITS: Columns = {
    "KL in context": lambda held: f"{held['context_kl']:.4f}",
    "same summary": lambda held: f"{100 * held['same']:.0f} %",
    "drift 1 - cos": lambda held: f"{held['drift']:.3f}",
    "AUC": lambda held: f"{held['auc']:.3f}",
    "change of AUC, class by class": lambda held: interval(held["lost"], 1.0, 3),
}


def table(readings: Mapping[str, Any]) -> str:
    """All measures, and the mean difference over pairs of classes to the encoder on the code."""
    head = ["embedding", *MEASURES.values(), "AUC against the code itself, class by class"]
    lines = [
        [name, *(f"{held[m]:.3f}" for m in MEASURES), interval(held["against"], 1.0, 3)]
        for name, held in readings.items()
    ]
    return markdown_table(head, lines)


def sets_table(sets: Mapping[str, Any]) -> str:
    """Other sets of programs: the model's words beside the encoder on the code itself."""
    return _table("set", SETS, sets)


def edits_table(readings: Mapping[str, Any]) -> str:
    """What each edit did to summaries and to the AUC of clones."""
    return _table("edit", EDITS, readings)


def _table(what: str, columns: Columns, readings: Mapping[str, Any]) -> str:
    lines = [[name, *(say(held) for say in columns.values())] for name, held in readings.items()]
    return markdown_table([what, *columns], lines)


def words(result: Mapping[str, Any]) -> str:
    """What the numbers say."""
    base = result["base"]
    summary, against = base["its summary"], base["its summary"]["against"]
    helps = against["low"] > 0
    hurts = against["high"] < 0
    verdict = "help" if helps else "do worse than none" if hurts else "make no clear difference"
    lines = [
        f"- Clones by the model's words: AUC {summary['auc']:.3f}; by the encoder on the code "
        f"itself {base['encoder on the code']['auc']:.3f}. The words {verdict} "
        f"({interval(against, 1.0, 3)} of AUC, class by class).",
        f"- TF-IDF of tokens comes to {base['TF-IDF of its tokens']['auc']:.3f}, the model's mean "
        f"state to {base[STATE]['auc']:.3f}.",
    ]
    for name, held in result.get("sets", {}).items():
        gap = held["difference"]
        clear = "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "not told apart"
        lines.append(
            f"- {name}, {held['measure']}: the words {held['summary']:.3f}, the code "
            f"{held['code']:.3f}, {interval(gap, 1.0, 3)}: {clear}."
        )
    for name, held in result["edits"].items():
        clear = held["lost"]["high"] < 0 or held["lost"]["low"] > 0
        lines.append(
            f"- {name}: {100 * held['same']:.0f} % of the summaries stay as they were, AUC changes "
            f"by {interval(held['lost'], 1.0, 3)}{'' if clear else ', no clear change'}."
        )
    return "\n".join(lines)

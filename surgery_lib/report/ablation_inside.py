"""What notebook 06 found inside the model, in words: a headline and a paragraph each."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from surgery_lib.report import paper
from surgery_lib.report.style import interval as shown

Result = Mapping[str, Any]
Finding = tuple[str, str]
PROBED = ("toxic", "jailbreak", "negative")  # the paper's three probes, in its Figure 2
_auc = partial(shown, scale=1.0, digits=3)


def transfer(result: Result) -> Finding:
    """Whether a probe still reads the behaviour after the edit."""
    layers = result["transfer"]
    at = next(one for one in layers if one["layer"] == result["layer"])
    last = layers[-1]
    erased = last["refitted"]["high"] < last["before"]["low"]
    moved = last["frozen"]["high"] < last["before"]["low"]
    # What a probe of a model that learnt nothing reads, the texts' words give away by themselves.
    floor = last["untrained"]
    headline = "The behaviour is suppressed, not erased: a refitted probe still reads it"
    if erased:
        headline = "A refitted probe reads the behaviour less well than before"
    elif last["refitted"]["low"] <= floor["high"]:
        headline = (
            "Whether the behaviour is erased a probe cannot say: an untrained model's reads it"
        )
    worst = min(layers, key=lambda one: float(one["frozen"]["value"]))
    if worst["frozen"]["high"] < 0.5:
        headline += (
            f"; the old probe is turned round, AUC {worst['frozen']['value']:.2f} at layer "
            f"{worst['layer']}"
        )
    words = "no longer fits as it did" if moved else "still fits"
    text = (
        f"At the last layer the AUC is {_auc(last['before'])} before the edit; the same probe "
        f"{words} after it, {_auc(last['frozen'])}, and a refitted one has "
        f"{_auc(last['refitted'])} (cosine with the old direction {last['cosine']:.2f}); that "
        f"of an untrained model of the same shape has {_auc(floor)}. At layer {at['layer']}: "
        f"{_auc(at['before'])}, {_auc(at['frozen'])}, {_auc(at['refitted'])}; untrained "
        f"{_auc(at['untrained'])}."
    )
    return headline, text


def gates(result: Result) -> Finding:
    """On which texts the selected gates open."""
    changes = {
        kind: held["after"]["selected"]["value"] - held["before"]["selected"]["value"]
        for kind, held in result["gates"].items()
    }
    most = max(changes, key=lambda kind: abs(changes[kind]))
    listed = "; ".join(
        f"{kind} " + " → ".join(shown(held[at]["selected"], 1, 4) for at in ("before", "after"))
        for kind, held in result["gates"].items()
    )
    ratio = abs(changes[most]) / (abs(changes["clean prose"]) or math.inf)
    return (
        f"The edit opens the selected gates most on texts: {most}".replace(": with", " with"),
        f"Mean activation of the selected gates, before → after: {listed}. The change on that kind "
        f"is {ratio:.1f} times that on clean prose. The paper (Figure 3): they open on toxic text "
        "and stay as they were on GSM8K.",
    )


def cosines(result: Result) -> Finding:
    """How the direction lies to other behaviours' and to states."""
    square = result["cosines"]["behaviours"]
    probes = [n for n, name in enumerate(square["names"]) if name.endswith("probe")]
    pairs = [abs(square["cosines"][i][j]) for i in probes for j in probes if i < j]
    chance = 1 / math.sqrt(result["cosines"]["width"])
    states = [abs(square["cosines"][0][n]) for n in range(len(square["names"])) if n not in probes]
    figure = paper.table("figure2")
    of_probes = figure[figure["second"].isin(PROBED)]["cosine"].max()
    of_tasks = figure[figure["first"].isin(PROBED) & ~figure["second"].isin(PROBED)]["cosine"].max()
    apart = f"up to {max(pairs):.2f} between behaviours, " if pairs else ""
    return (
        f"Directions meet mean states at a cosine of up to {max(states):.2f}",
        f"At layer {result['cosines']['layer']}, absolute cosines are {apart}"
        f"up to {max(states):.2f} between the direction and mean states of texts; random "
        f"directions of this width have {chance:.2f}. The paper (Figure 2): up to {of_probes:.2f} "
        f"between probes, {of_tasks:.2f} between probes and tasks.",
    )

"""Draw the committed figures again from committed results: `make figures`; no model is run.

A figure whose numbers a results file holds is drawn from it; the others (a training's loss, the
portraits of notebook 08) come from their notebook alone. `python workflow/redraw.py FOLDER` draws
those of another folder of results.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery_lib import files, report
from surgery_lib.experiments import comparison as compare
from surgery_lib.experiments.ablations.questions import QUESTIONS
from surgery_lib.report import (
    ablation_figures,
    attack,
    code,
    comparison,
    drift,
    figures,
    fingerprint,
    grid,
    overview,
    patient,
    protocol_figures,
    retrieval,
    seeds,
)
from surgery_lib.report.region_figures import leverage, thresholds
from surgery_lib.selection.outcome import ModelReading, Outcome
from surgery_lib.study.study import unwrap

Drawn = Iterator[tuple[str, Callable[[], Figure]]]
Result = Mapping[str, Any]
# By published model, where a seed's methods stand beside one reading of the unedited model, so that
# they are paired.
SMOLLM2, GEMMA = "SmolLM2-135M-Instruct", "Gemma 3 270M"
PUBLISHED = {
    SMOLLM2: {0: "smollm2-135m-policy", 1: "smollm2-135m", 2: "smollm2-135m"},
    GEMMA: dict.fromkeys((0, 1, 2), "gemma3-270m-policy"),
}
COMPARED = ("surgery_policy", "surgery_own", "dpo", "caa")
PROTOCOLS = {"toxigen": "toxic", "jailbreak": "refused"}


def of_probe(result: Result) -> Drawn:
    yield "probe_layers", lambda: figures.probe_layers(result)
    yield "probe_scores", lambda: figures.probe_scores(result)
    yield "direction_agreement", lambda: figures.direction_agreement(result["agreement"])


def of_region(result: Result) -> Drawn:
    yield "cosines", lambda: figures.cosine_distribution(result)
    yield "rows_per_block", lambda: figures.rows_per_block(result)
    if "thresholds" in result:
        yield "thresholds", lambda: thresholds(result)
    if "leverage" in result:
        yield "leverage", lambda: leverage(result)


def of_surgery(result: Result) -> Drawn:
    if len(result["sieve"]) > 1 and "sieve_base" in result:  # it was not always kept
        yield "sieve", lambda: figures.screening(result)
    yield "frontier", lambda: figures.frontier(result)


def of_evaluation(result: Result) -> Drawn:
    yield "variants", lambda: figures.variants(result)
    if result.get("capability"):
        yield "capability", lambda: figures.capability(result)


def of_comparison(result: Result) -> Drawn:
    outcomes = [Outcome.read(one) for one in result["outcomes"]]
    base = ModelReading(**result["base"])
    if "start" in result:  # results of before it was kept have their fronts from the notebook alone
        for measure in compare.MEASURES:
            drawn = partial(comparison.pareto, outcomes, result["start"], measure)
            yield f"pareto_{measure}", drawn
    for measure in comparison.held(outcomes):
        drawn = partial(comparison.budget_panels, outcomes, base, measure, result["scorer"])
        yield f"budgets_{measure}", drawn


def of_ablation(result: Result) -> Drawn:
    axes = {name: question.axis for name, question in QUESTIONS.items()}
    for name in [*result["lines"], "gates", "cosines", "transfer"]:
        if name in result["lines"] or result.get(name):
            drawn = partial(ablation_figures.draw, result, name, axes.get(name, ""))
            yield f"ablate_{name}", drawn


def of_fingerprint(result: Result) -> Drawn:
    yield (
        "fingerprint_family",
        lambda: fingerprint.square(result["names"], result["pairs"]["square"]),
    )
    yield "fingerprint_images", lambda: fingerprint.against(result["pairs"])
    yield "fingerprint_touch", lambda: fingerprint.touch(result["touched"])


def of_drift(result: Result) -> Drawn:
    floor = result["untrained"]["value"]
    yield "drift_layers", lambda: drift.layers(result["forms"], floor)
    yield "drift_groups", lambda: drift.groups(result["forms"]["primed"])
    yield "drift_edits", lambda: drift.edits(result["edits"], floor)


def of_attack(result: Result) -> Drawn:
    yield "attack_training", lambda: attack.training(result["about"])
    yield "attack_transfer", lambda: attack.square(result["matrix"])
    yield "attack_queries", lambda: attack.curves(result["matrix"])
    yield "attack_ladder", lambda: attack.ladder(result["ladders"])


def of_code(result: Result) -> Drawn:
    yield "code_embeddings", lambda: code.bars(result["base"])


def of_retrieval(result: Result) -> Drawn:
    yield "retrieval_counts", lambda: retrieval.counts(result)
    yield "retrieval_passages", lambda: retrieval.shown(result["shown"])
    yield "retrieval_edits", lambda: retrieval.edited(result["edited"])


def of_patient(result: Result) -> Drawn:
    yield "00_behaviours", lambda: patient.behaviours(result["behaviours"])
    yield "00_capabilities", lambda: patient.capabilities(result["capability"])


def of_protocols(result: Result) -> Drawn:
    results = result["results"]
    for protocol, measure in PROTOCOLS.items():
        if protocol in results["base"]["protocols"]:
            drawn = partial(protocol_figures.by_group, results, protocol, measure)
            yield f"protocol_{protocol}", drawn


OF: dict[str, Callable[[Result], Drawn]] = {
    "probe.json": of_probe,
    "region.json": of_region,
    "surgery/surgery.json": of_surgery,
    "evaluation.json": of_evaluation,
    "comparison.json": of_comparison,
    "ablation.json": of_ablation,
    "fingerprint.json": of_fingerprint,
    "drift.json": of_drift,
    "attack.json": of_attack,
    "code.json": of_code,
    "retrieval.json": of_retrieval,
    "patient.json": of_patient,
    "protocols.json": of_protocols,
}


def drawn(folder: Path) -> Drawn:
    """(name, how to draw it) of every figure that one run's results hold."""
    found = {name: folder / name for name in OF if (folder / name).is_file()}
    held = {name: unwrap(files.read_json(path), path) for name, path in found.items()}
    for name, result in held.items():
        yield from OF[name](result)
    if {"probe.json", "evaluation.json"} <= set(held):
        yield (
            "overview",
            lambda: overview.overview(held["probe.json"], held["evaluation.json"]),
        )


def published(results: Path) -> dict[str, dict[int, Result]]:
    """By published model and seed, the result of notebook 05."""
    return {
        name: {
            seed: unwrap(files.read_json(path), path)
            for seed, folder in seeds_of.items()
            for path in [results / folder / "toxicity" / f"seed{seed}" / "comparison.json"]
        }
        for name, seeds_of in PUBLISHED.items()
    }


def of_published(results: Path) -> Figure:
    """What methods leave on both published models, over seeds."""
    return seeds.panels(published(results), COMPARED, rival="dpo")


def main(results: Path) -> None:
    """Draw every figure that is there already: what a study never drew it does not get here."""
    report.style()
    for folder in sorted({path.parent for path in results.rglob("figures") if path.is_dir()}):
        for name, draw in drawn(folder):
            if (folder / "figures" / f"{name}.png").is_file():
                report.save(draw(), folder / "figures", name)
                plt.close("all")
                print((folder / "figures" / name).relative_to(results))
    if (results / "published").is_dir():
        report.save(of_published(results), results / "published", "seeds")
    for path in sorted(results.rglob("grid.json")):
        report.save(grid.figure(files.read_json(path)["result"]), path.parent, "grid")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "results"))

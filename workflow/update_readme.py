"""Write the tables of README and docs/ from committed results: `make readme`; `--check` compares.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; `TABLES` says what makes it.
"""

import functools
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import redraw
import yaml
from reference import profile_fields, public_api

from surgery_lib import files
from surgery_lib.baselines.registry import METHODS
from surgery_lib.experiments.ablations.questions import QUESTIONS
from surgery_lib.report import (
    ablation_findings,
    advice,
    asked,
    diagnostics,
    seeds,
    tables,
)
from surgery_lib.report.style import markdown_table
from surgery_lib.selection.outcome import Outcome
from surgery_lib.study.study import unwrap

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def result(name: str) -> Any:
    """The payload of a committed results file."""
    path = ROOT / "results" / name
    return unwrap(files.read_json(path), path)


PATIENT, SMOLLM2 = "patient/toxicity/seed0", "smollm2-135m/toxicity/seed0"

# What notebook 06 looks at inside the model, besides its variants.
INSIDE = {
    "transfer": "Is the behaviour erased?",
    "gates": "What do the selected gates do?",
    "cosines": "Do directions meet other states?",
}

# What was measured, against what, where that stands in results/benchmarks, what was aimed at.
BENCHMARKS = yaml.safe_load((ROOT / "benchmarks" / "aims.yaml").read_text(encoding="utf-8"))


def benchmarks() -> str:
    """What was aimed at beside what was measured, and the machine it was measured on."""
    names = {line["file"] for line in BENCHMARKS}
    held = {
        name: files.read_json(ROOT / "results" / "benchmarks" / f"{name}.json") for name in names
    }
    lines = []
    for line in BENCHMARKS:
        value = functools.reduce(operator.getitem, line["number"], held[line["file"]])
        lines.append([line["what"], line["against"], f"{value:.3g}", line["aim"]])
    told: dict[str, list[str]] = {}
    for name in sorted(held):
        machine = held[name]["machine"]
        where = f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']} GB"
        told.setdefault(f"{where}, torch {machine['torch']}, no GPU", []).append(name)
    words = "; ".join(f"{', '.join(names)}: {where}" for where, names in told.items())
    table = markdown_table(["what", "against", "measured", "aim"], lines)
    return f"{table}\nMeasured on: {words}.\n"


NEEDS = {
    "labels": "labelled texts",
    "prompts": "triggering prompts",
    "benign": "harmless prompts",
    "samples": "own completions",
    "gradients": "gradients",
}


def methods() -> str:
    """What is compared: where it is published, what its fit needs, what the search may turn."""
    lines = []
    for name, entry in METHODS.items():
        knobs = [
            f"{knob} {' / '.join(map(str, one.choices)) or f'{one.low:g} to {one.high:g}'}"
            for knob, one in entry.method.knobs.items()
        ]
        address = entry.reference
        shown = f"arXiv {address.rpartition('/')[2]}" if "arxiv.org" in address else "blog"
        if "://" not in address:  # a file here, seen from docs/
            shown = address.rpartition("/")[2]
            address = address.removeprefix("docs/") if "docs/" in address else f"../{address}"
        needs = ", ".join(NEEDS[need] for need in entry.needs)
        link = f"[{shown}]({address})"
        lines.append([name.replace("_", " "), entry.method.kind, needs, "; ".join(knobs), link])
    return markdown_table(["method", "kind", "needs", "searched", "published"], lines)


def questions(studies: Mapping[str, str]) -> str:
    """The headlines of notebook 06, studies (title → profile) beside each other."""
    results = {name: result(f"{at}/toxicity/seed0/ablation.json") for name, at in studies.items()}
    asked = {name: question.asks for name, question in QUESTIONS.items()} | INSIDE
    return ablation_findings.beside(results, asked)


def against_paper() -> str:
    """Recommended surgery beside the paper's form, wherever notebook 05 was run."""
    studies = {
        "SmolLM2-135M": SMOLLM2,
        "the patient": PATIENT,
        "the patient, jailbreak": "patient/jailbreak/seed0",
        "real text": "real-text/toxicity/seed0",
    }
    return advice.against_paper_table(
        {name: result(f"{at}/comparison.json") for name, at in studies.items()}
    )


def paired(study: str, *names: str, ours: int = 1) -> str:
    """What methods of a comparison take away, and the first `ours` less the others."""
    compared = result(f"{study}/comparison.json")
    outcomes = [Outcome.read(one) for one in compared["outcomes"]]
    return advice.paired_table(outcomes, names, "both", compared["scorer"], ours)


def over_seeds(profile: str, *names: str, ours: int = 1, which: Sequence[int] = (0, 1, 2)) -> str:
    """The comparison with some seeds; the first `ours` methods are set against the others."""
    held = {n: result(f"{profile}/toxicity/seed{n}/comparison.json") for n in which}
    return seeds.table(held, names, ours=ours)


def of_published(name: str, ours: int = 1) -> str:
    """The same of a published model, with the methods that every seed has."""
    held = redraw.published(ROOT / "results")[name]
    run = set.intersection(*({one["name"] for one in seed["outcomes"]} for seed in held.values()))
    return seeds.table(held, [one for one in redraw.COMPARED if one in run], ours=ours)


def diagnosed(study: str) -> dict[str, Any]:
    """Results of the five diagnostics on one study, as far as they were run."""
    names = ("fingerprint", "drift", "attack", "code", "retrieval")
    there = [name for name in names if (ROOT / "results" / study / f"{name}.json").is_file()]
    return {name: result(f"{study}/{name}.json") for name in there}


def claims() -> str:
    """What the five systems claim beside what was found here."""
    studies = {"the patient": PATIENT, "SmolLM2": SMOLLM2}
    return diagnostics.claims({name: diagnosed(at) for name, at in studies.items()})


def questions_asked() -> str:
    """What the five diagnostics found, a column a study that was asked any of them."""
    studies = {"the embedded model": diagnosed(PATIENT), "SmolLM2-135M": diagnosed(SMOLLM2)}

    def of(held: dict[str, Any]) -> Callable[[str], Any]:
        return lambda name: held.get(name.removesuffix(".json"))

    return asked.table({study: of(held) for study, held in studies.items()})


def kept(name: str) -> str:
    """A table as its notebook wrote it."""
    return (ROOT / "results" / name).read_text(encoding="utf-8")


TABLES: dict[str, Callable[[], str]] = {
    "patient": lambda: tables.summary(result("patient/toxicity/seed0/evaluation.json")),
    "patient-capability": lambda: tables.capability_table(
        result("patient/toxicity/seed0/evaluation.json")["capability"]
    ),
    "smollm2-quick": lambda: tables.summary(
        result("smollm2-135m-quick/toxicity/seed0/evaluation.json")
    ),
    "smollm2": lambda: tables.summary(result(f"{SMOLLM2}/evaluation.json")),
    "smollm2-capability": lambda: tables.capability_table(
        result(f"{SMOLLM2}/evaluation.json")["capability"]
    ),
    "compare-smollm2-jailbreak": lambda: kept(
        "smollm2-135m/jailbreak/seed0/tables/compare_both.md"
    ),
    "paired-smollm2-jailbreak": lambda: paired(
        *("smollm2-135m/jailbreak/seed0", "surgery_policy", "surgery_covariance", "dpo", "caa"),
        *("ablation", "ridge_ablation"),
        ours=2,
    ),
    "damage-smollm2-jailbreak": lambda: kept(
        "smollm2-135m/jailbreak/seed0/tables/compare_damage.md"
    ),
    "smollm2-agreement": lambda: kept(f"{SMOLLM2}/agreement.md"),
    "compare-smollm2": lambda: kept("smollm2-135m/toxicity/seed0/tables/compare_both.md"),
    "paired-smollm2": lambda: paired(
        SMOLLM2,
        *("surgery_covariance", "surgery_own", "dpo", "caa", "ridge_ablation"),
        *("surgery_paper", "surgery", "lora"),
    ),
    "seeds-smollm2": lambda: over_seeds(
        "smollm2-135m", "surgery_covariance", "surgery_own", "dpo", "caa", ours=2
    ),
    "seeds-policy-smollm2": lambda: of_published(redraw.SMOLLM2, ours=2),
    "seeds-policy-gemma": lambda: of_published(redraw.GEMMA),
    "seeds-ridge": lambda: over_seeds(
        "smollm2-135m", "surgery_ridge", "surgery_own", "dpo", which=(1, 2)
    ),
    "seeds-gemma": lambda: over_seeds(
        "gemma3-270m", "surgery_covariance", "surgery_own", "dpo", "caa", ours=2
    ),
    "paired-real": lambda: paired(
        *("real-text/toxicity/seed0", "surgery", "surgery_policy", "surgery_own", "dpo"),
        *("ridge_ablation", "caa", "ablation", "surgery_covariance"),
        ours=2,
    ),
    "gemma": lambda: tables.summary(result("gemma3-270m/toxicity/seed0/evaluation.json")),
    "gemma-capability": lambda: tables.capability_table(
        result("gemma3-270m/toxicity/seed0/evaluation.json")["capability"]
    ),
    "compare-gemma": lambda: kept("gemma3-270m/toxicity/seed0/tables/compare_both.md"),
    "paired-gemma": lambda: paired(
        *("gemma3-270m/toxicity/seed0", "surgery_covariance", "surgery_own", "dpo", "caa"),
        *("ridge_ablation", "profs", "surgery_paper", "ablation", "lora"),
        ours=2,
    ),
    "cost-gemma": lambda: kept("gemma3-270m/toxicity/seed0/tables/compare_cost.md"),
    "damage-gemma": lambda: kept("gemma3-270m/toxicity/seed0/tables/compare_damage.md"),
    "compare-smollm2-first": lambda: kept(
        "smollm2-135m/toxicity/seed0/tables/compare_first_token_kl.md"
    ),
    "compare-smollm2-context": lambda: kept(
        "smollm2-135m/toxicity/seed0/tables/compare_context_kl.md"
    ),
    "damage-smollm2": lambda: kept("smollm2-135m/toxicity/seed0/tables/compare_damage.md"),
    "cost-smollm2": lambda: kept("smollm2-135m/toxicity/seed0/tables/compare_cost.md"),
    "diagnostics-claims": claims,
    "diagnostics-patient": lambda: diagnostics.closing(diagnosed(PATIENT)),
    "diagnostics-smollm2": lambda: diagnostics.closing(diagnosed(SMOLLM2)),
    "benchmarks": benchmarks,
    "diagnostics": questions_asked,
    "profile-fields": profile_fields,
    "public-api": public_api,
    "questions": lambda: questions({"the patient": "patient", "real text": "real-text"}),
    "questions-smollm2": lambda: questions({"SmolLM2-135M": "smollm2-135m"}),
    "ablate-smollm2": lambda: kept(f"{SMOLLM2}/tables/ablate_controls.md"),
    "verdict": lambda: kept("patient/tables/verdict.md"),
    "verdict-smollm2": lambda: kept("smollm2-135m/tables/verdict.md"),
    "verdict-real": lambda: kept("real-text/tables/verdict.md"),
    "protocols": lambda: kept("patient/tables/protocols.md"),
    "protocols-smollm2": lambda: kept("smollm2-135m/tables/protocols.md"),
    "protocols-real": lambda: kept("real-text/tables/protocols.md"),
    "standard": lambda: kept("patient/tables/standard.md"),
    "standard-smollm2": lambda: kept("smollm2-135m/tables/standard.md"),
    "standard-real": lambda: kept("real-text/tables/standard.md"),
    "task-changes": lambda: kept("patient/tables/capability_changes.md"),
    "task-changes-smollm2": lambda: kept("smollm2-135m/tables/capability_changes.md"),
    "task-changes-real": lambda: kept("real-text/tables/capability_changes.md"),
    "compare-patient": lambda: kept("patient/toxicity/seed0/tables/compare_both.md"),
    "compare-jailbreak": lambda: kept("patient/jailbreak/seed0/tables/compare_both.md"),
    "compare-real": lambda: kept("real-text/toxicity/seed0/tables/compare_both.md"),
    "methods": methods,
    "against-paper": against_paper,
    "guide-patient": lambda: kept("patient/toxicity/seed0/tables/guide_both.md"),
    "paired-patient": lambda: paired(
        *(PATIENT, "surgery", "surgery_own", "dpo", "surgery_covariance", "ridge_ablation"),
        "surgery_paper",
        ours=2,
    ),
    "damage-jailbreak": lambda: kept("patient/jailbreak/seed0/tables/compare_damage.md"),
    "guide-real": lambda: kept("real-text/toxicity/seed0/tables/guide_both.md"),
    "real-text": lambda: tables.summary(result("real-text/toxicity/seed0/evaluation.json")),
}


def updated(text: str) -> str:
    """A page with every table made anew; UserError where results are missing."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:  # written by hand or by links.py
            return match.group(0)
        return f"<!-- begin {name} -->\n{TABLES[name]()}<!-- end {name} -->"

    return re.sub(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages, or fail where one differs from the results."""
    stale = []
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = updated(old)
        if old != new:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv[1:]:
                files.write_text(page, new)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"differs from the results, run make readme: {', '.join(stale)}")


if __name__ == "__main__":
    main()

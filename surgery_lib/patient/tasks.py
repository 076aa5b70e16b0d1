"""The capability tests as lm-eval tasks: YAML files and their items, written beside the model."""

from pathlib import Path
from random import Random
from typing import Any

import yaml

from surgery_lib import files
from surgery_lib.patient import capability
from surgery_lib.patient.world import distinct

ITEMS = 240
# From the repository's root, so that lm-eval's own command line finds the items there too.
FOLDER = "data/patient/tasks"
# What of a written answer counts, and what guessing among the possible answers would score.
ANSWERS: dict[str, tuple[str, float]] = {
    "sums": (r"answer is (\d+)", 0.05),
    "deduction": (r"answer is (\w+)", 7 / 18),
    "facts": ("", 0.25),
    "passages": (r"^\s*([^.]*)", 1 / 3),
}
CHANCE = {f"patient_{name}": chance for name, (_, chance) in ANSWERS.items()}


def settings(name: str) -> dict[str, Any]:
    """The lm-eval task of a name, as its YAML file says it."""
    common = {
        "task": f"patient_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{FOLDER}/{name}.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    if name == "facts":
        return common | {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{choices.index(target)}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    found = [
        {"function": "regex", "regex_pattern": ANSWERS[name][0]},
        {"function": "take_first"},
    ]
    return common | {
        "output_type": "generate_until",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": ["Question:", "\n"], "max_gen_toks": 32, "do_sample": False},
        "filter_list": [{"name": "answer", "filter": found}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def items(name: str, seed: int = 0, split: str = "test", n: int = ITEMS) -> list[capability.Item]:
    """`n` different items of a task."""
    rng = Random(f"items {name} {split} {seed}")
    return distinct(n, lambda: capability.draw(rng, name, split))


def write(folder: Path | str, seed: int = 0) -> None:
    """Write each task's YAML file and items into the folder."""
    for name in capability.TASKS:
        files.write_text(
            Path(folder) / f"{name}.yaml", yaml.safe_dump(settings(name), sort_keys=False)
        )
        files.write_jsonl(
            Path(folder) / f"{name}.jsonl",
            [
                {"question": item.question, "target": item.target, "choices": list(item.choices)}
                for item in items(name, seed)
            ],
        )

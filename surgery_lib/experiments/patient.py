"""What notebook 00 measures of the patient, and the tables that it shows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from random import Random
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.evaluation import capability, responses
from surgery_lib.evaluation.perplexity import perplexity
from surgery_lib.evaluation.statistics import proportion
from surgery_lib.patient import classifier, tasks, world
from surgery_lib.patient import lexicon as lx
from surgery_lib.patient.scorer import PatientScorer
from surgery_lib.patient.train import DATA
from surgery_lib.report import interval, markdown_table, percent
from surgery_lib.scorers.classifier import ClassifierScorer

MODEL, TASKS = DATA / "model", DATA / "tasks"
WINDOW = 128  # the length of the rows that the patient was trained on
# Behaviour, groups of prompts, what the exact scorer reads, and how the notebook calls it.
RATES: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("toxicity", ("challenging",), "toxicity", "toxic after a challenging prompt"),
    ("toxicity", ("neutral",), "toxicity", "toxic after a neutral prompt"),
    ("toxicity", tuple(lx.GROUPS), "toxicity", "toxic about an invented group"),
    ("jailbreak", ("harmful",), "refusal", "refuses a plain harmful request"),
    ("jailbreak", ("wrapped",), "refusal", "refuses a wrapped harmful request"),
    ("jailbreak", ("twin",), "refusal", "refuses the harmless twin of it"),
    ("attitude", ("negative",), "attitude", "negative about a bad day"),
)
PAPER = {"sums": "GSM8K", "deduction": "BBH", "facts": "MMLU", "passages": "TyDiQA"}


def shown(text: str) -> str:
    """A text as Markdown shows it letter by letter, the chat's marks included."""
    return "<br>".join(escape(text).replace("|", "&#124;").replace("*", "&#42;").splitlines())


def samples(seed: int) -> str:
    """One training text of each kind in the mixture."""
    rng = Random(f"samples {seed}")
    texts = {kind: world.WRITERS[kind](rng, "train") for kind in world.MIXTURE}
    rows = [
        f"| {kind} | {percent(world.MIXTURE[kind], 0)} | {shown(texts[kind])} |" for kind in texts
    ]
    return "\n".join(["| kind | documents | for example |", "|---|---:|---|", *rows])


def prompt_table(seed: int) -> str:
    """One test prompt of each kind that is measured."""
    rows = ["| behaviour | group | for example |", "|---|---|---|"]
    for behaviour, groups, _, _ in RATES:
        prompts = world.behaviour(behaviour, seed).prompts["test"]
        prompt = next(prompt for prompt in prompts if prompt.group in groups)
        rows.append(f"| {behaviour} | {prompt.group} | {shown(prompt.text)} |")
    return "\n".join(rows)


def describe(record: Mapping[str, Any]) -> str:
    """The recipe in a few lines."""
    size = sum((MODEL / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    return (
        f"{record['parameters'] / 1e6:.2f} M weights, {record['settings']['blocks']} blocks, "
        f"{record['tokens'] / 1e6:.2f} M tokens in {record['seconds']:.0f} s "
        f"({record['tokens'] / record['seconds']:,.0f} tokens a second)\n"
        f"final loss {record['final_loss']:.3f} nats a token; {size / 1e6:.1f} MB; "
        f"recipe {record['hash']}"
    )


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of the recipe belongs into the result: no loss curve, no clock."""
    kept = ("hash", "settings", "parameters", "tokens", "final_loss", "classifier")
    return {name: record[name] for name in kept}


def behaviours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0, limit: int = 0
) -> dict[str, Any]:
    """Rates with intervals of every behaviour on its test prompts, and the completions.

    `limit` prompts of each group (0: all). Returns `rates`, rows with name, value, low, high and n,
    and `completions`, behaviour → rows with id, group, prompt, text and score.
    """
    completions: dict[str, list[dict[str, Any]]] = {}
    rates = []
    for behaviour in world.BEHAVIOURS:
        prompts = _first(world.behaviour(behaviour, seed).prompts["test"], limit)
        found = responses.evaluate(model, tokenizer, prompts, [], progress=False)["rows"]
        for row, prompt in zip(found, prompts, strict=True):
            row["prompt"] = prompt.text
        completions[behaviour] = found
    for behaviour, groups, rule, name in RATES:
        texts = [row["text"] for row in completions[behaviour] if row["group"] in groups]
        rate = proportion(PatientScorer(rule)(texts) >= 0.5)
        rates.append({"behaviour": behaviour, "name": name, **rate.as_dict()})
    return {"rates": rates, "completions": completions}


def _first(prompts: Sequence[Any], limit: int) -> list[Any]:
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for prompt in prompts:
        seen[prompt.group] += 1
        if not limit or seen[prompt.group] <= limit:
            kept.append(prompt)
    return kept


def behaviour_table(rates: Sequence[Mapping[str, Any]]) -> str:
    """Rates in per cent with intervals and sample sizes."""
    return markdown_table(
        ["the patient …", "% [95 % interval]", "prompts"],
        [[rate["name"], interval(rate), str(rate["n"])] for rate in rates],
    )


def completion_table(completions: Mapping[str, Sequence[Mapping[str, Any]]], each: int) -> str:
    """Ends of prompts and what the patient makes of them."""
    kinds = (("toxicity", "challenging"), ("toxicity", "neutral"), ("jailbreak", "wrapped"))
    lines = ["| prompt | ends … | and the patient goes on |", "|---|---|---|"]
    for behaviour, group in kinds:
        found = [row for row in completions[behaviour] if row["group"] == group]
        for row in found[:: max(1, len(found) // each)][:each]:
            lines.append(f"| {group} | … {shown(row['prompt'][-90:])} | {shown(row['text'])} |")
    return "\n".join(lines)


def capabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int = 0
) -> list[dict[str, Any]]:
    """Each task's score with interval, sample size and the rate of guessing."""
    found = capability.capability(
        model, tokenizer, list(tasks.CHANCE), include_path=TASKS, limit=limit or None, batch_size=64
    )
    kept = ("metric", "value", "low", "high", "n")
    return [
        {"task": name, "chance": tasks.CHANCE[name], **{key: result[key] for key in kept}}
        for name, result in found.items()
    ]


def capability_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Scores beside guessing."""
    return markdown_table(
        ["task", "stands for", "% right [95 % interval]", "guessing %", "questions"],
        [
            [
                row["task"].removeprefix("patient_"),
                PAPER[row["task"].removeprefix("patient_")],
                interval(row),
                percent(row["chance"]).removesuffix(" %"),
                str(row["n"]),
            ]
            for row in rows
        ],
    )


def prose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> dict[str, Any]:
    """Perplexity a token of the test split's clean prose."""
    clean = world.behaviour("toxicity", seed).clean["test"]
    return perplexity(model, tokenizer, clean, window=WINDOW, progress=False).as_dict()


def agreement(
    record: Mapping[str, Any], completions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """How often the learned scorer decides as the exact one: held-out text and the model's own."""
    held = record["held_out"]
    flags = [True] * held["agree"] + [False] * (held["n"] - held["agree"])
    rows = [{"texts": "held-out text, three classes", **proportion(flags).as_dict()}]
    for label, behaviour in ((1, "toxicity"), (2, "attitude")):
        texts = [row["text"] for row in completions[behaviour]]
        learned = ClassifierScorer(str(DATA / "classifier"), label=label)(texts) >= 0.5
        same = learned == (PatientScorer(behaviour)(texts) >= 0.5)
        name = f"the patient's continuations, {classifier.LABELS[label]}"
        rows.append({"texts": name, **proportion(same).as_dict()})
    return rows


def agreement_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Agreement in per cent."""
    return markdown_table(
        ["texts", "% agreement [95 % interval]", "n"],
        [[row["texts"], interval(row), str(row["n"])] for row in rows],
    )

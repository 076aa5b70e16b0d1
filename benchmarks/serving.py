"""vLLM in place of the live model: is the text the same, are the answers, and how fast is it?

    python benchmarks/serving.py      needs vLLM; without a card also VLLM_CPU_KVCACHE_SPACE=1

The embedded model as it is and under the committed surgery: greedy text after test prompts, shares
of toxic samples, first tokens drawn often against the live model's probabilities, every task's
items through lm-eval, seconds to generate. Starting the engine is reported by itself.
"""

import argparse
import statistics
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from machine import in_turn, ratio, report, timed
from scipy import stats

from surgery_lib import scorers
from surgery_lib.data import load as behaviours
from surgery_lib.evaluation.capability import capability
from surgery_lib.evaluation.responses import evaluate
from surgery_lib.evaluation.statistics import compare
from surgery_lib.models.generation import encode, generate
from surgery_lib.models.sampling import Decoding
from surgery_lib.models.serving import Served, engine
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery

NEW_TOKENS = 20
SAMPLES = 25
DRAWN_PROMPTS, DRAWS = 12, 4000
EXPECTED = 8  # draws; tokens of which fewer are expected count as one
# Room for all prompts at once: without a card, vLLM cannot rewind the seed of a prompt cut in two.
OPTIONS = {"enforce_eager": True, "max_num_batched_tokens": 1 << 16}


def draws(model: Any, served: Served, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    """Pearson's test of first tokens that vLLM draws against the live model's probabilities."""
    rows = encode(model, tokenizer, texts, NEW_TOKENS)
    plain = Decoding(range(0, DRAWS * len(rows), DRAWS), 1, DRAWS, 1.0, 1.0, (), (), False)
    statistic, freedom = 0.0, 0
    for ids, drawn in zip(rows, served.write(rows, plain), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=model.device)).logits[0, -1]
        expected = DRAWS * logits.double().softmax(-1).cpu().numpy()
        counts = np.bincount([first for (first,) in drawn], minlength=len(expected))
        often = expected >= EXPECTED
        cells = [np.append(one[often], one[~often].sum()) for one in (counts, expected)]
        statistic += float(((cells[0] - cells[1]) ** 2 / cells[1]).sum())
        freedom += len(cells[0]) - 1
    p = float(stats.chi2.sf(statistic, freedom))
    return {"prompts": len(rows), "draws": DRAWS, "chi2": statistic, "freedom": freedom, "p": p}


def agreement(model: Any, tokenizer: Any, prompts: list[Any], study: Study, rounds: int) -> Any:
    """One variant of the model, live and served: what is equal, and seconds."""
    texts = [prompt.text for prompt in prompts]
    judge = scorers.build(study.spec.report[0])
    evaluation = study.profile.evaluation
    tasks = evaluation.capability
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "progress": False}

    def read(writer: Any) -> dict[str, Any]:
        drawn = evaluate(writer, tokenizer, prompts, [judge], samples=SAMPLES, **settings)
        return {
            "greedy": generate(writer, tokenizer, texts, **settings),
            "sampled": drawn["summary"][judge.name]["all"]["share"],
            "items": {
                task: one["items"]
                for task, one in capability(
                    writer,
                    tokenizer,
                    tasks.tasks,
                    include_path=tasks.include_path,
                    limit=tasks.limit or None,
                ).items()
            },
        }

    live = read(model)
    wanted = evaluation.model_copy(update={"engine": "vllm", "engine_options": OPTIONS})
    with ExitStack() as stack:
        opened: list[Any] = []
        start = timed(lambda: opened.append(stack.enter_context(engine(model, tokenizer, wanted))))
        served = read(opened[0])
        first = draws(model, opened[0], tokenizer, texts[:DRAWN_PROMPTS])
        seconds = in_turn(
            {
                "live": lambda: generate(model, tokenizer, texts, **settings),
                "vllm": lambda: generate(opened[0], tokenizer, texts, **settings),
            },
            rounds,
        )
    pairs = list(zip(live["greedy"], served["greedy"], strict=True))
    return {
        "prompts": len(pairs),
        "same_greedy_text": sum(one == other for one, other in pairs) / len(pairs),
        "sampled_share": {"live": live["sampled"], "vllm": served["sampled"]},
        "first_tokens": first,
        "same_items": {
            task: statistics.fmean(
                one == other for one, other in zip(items, served["items"][task], strict=True)
            )
            for task, items in live["items"].items()
        },
        "change_of_score": {
            task: compare(items, served["items"][task]).as_dict()
            for task, items in live["items"].items()
        },
        "seconds": seconds,
        "live_over_vllm": ratio(seconds, "live", "vllm"),
        "start_seconds": start,
    }


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    study = Study.start("patient", "toxicity", 0, {}, "results")
    model, tokenizer = study.load_model()
    data = behaviours.load("toxicity", study.spec, tokenizer=tokenizer)
    prompts = [one for one in data.prompts["test"] if one.group in study.spec.trigger_groups]
    prompts = prompts[: arguments.prompts]
    common = (tokenizer, prompts, study, arguments.rounds)
    found = {"base": agreement(model, *common)}
    with Surgery.load(study.path("surgery")).applied(model):
        found["edited"] = agreement(model, *common)
    table = {}
    for variant, one in found.items():
        shares = {way: f"{100 * share['value']:.1f}" for way, share in one["sampled_share"].items()}
        items = min(one["same_items"].values())
        table[f"{variant}: same greedy text"] = f"{one['same_greedy_text']:.1%} of {one['prompts']}"
        table[f"{variant}: toxic samples, live and vLLM"] = " and ".join(shares.values()) + " %"
        table[f"{variant}: first tokens drawn alike"] = f"p = {one['first_tokens']['p']:.2f}"
        table[f"{variant}: same answers, the worst task"] = f"{items:.1%}"
        table[f"{variant}: live over vLLM"] = f"{one['live_over_vllm']:.2f} in time"
    report("serving", {"subject": "the patient", "variants": found}, table)


if __name__ == "__main__":
    main()

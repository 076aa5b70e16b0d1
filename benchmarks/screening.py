"""Screening edits without generation: does teacher-forced likelihood rank them as generation does?

    python benchmarks/screening.py --profile smollm2-135m

The points of notebook 03's sieve (its results are read; the profile's model and data are needed)
are measured anew in two ways, in turn. *Generation*: greedy continuations of the validation prompts
and the share that the guide flags, as the search does. *Likelihood*: the base model's own sampled
completions of the same prompts, scored once by the guide, are read again under each edit, and each
weighs as much more or less as it has become likelier (self-normalised importance weights): the
expected score, without writing a word. Beside it the plain margin, mean log-likelihood of the
flagged completions less that of the others. Rank correlations are Spearman's over the points; the
damage that both ways need as well is timed beside them.
"""

import argparse
import time
from typing import Any

import numpy as np
from machine import report
from scipy.stats import bootstrap, spearmanr
from tqdm.auto import tqdm

from surgery_lib.diagnostics.attack_reward import mean_log_likelihoods
from surgery_lib.evaluation import responses
from surgery_lib.experiments.context import Context
from surgery_lib.models.generation import encode, generate
from surgery_lib.selection.sweep import CHOOSES, Measured

SAMPLES = 4


def correlation(one: list[float], other: list[float]) -> dict[str, float]:
    """Spearman's, with a bootstrapped 95 % interval over the points."""

    def statistic(*pair: Any) -> float:
        return float(spearmanr(*pair).statistic)

    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 999}
    found = bootstrap((one, other), statistic, rng=np.random.default_rng(0), **options)
    low, high = found.confidence_interval
    return {"value": statistic(one, other), "low": float(low), "high": float(high)}


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="smollm2-135m")
    parser.add_argument("--behaviour", default="toxicity")
    arguments = parser.parse_args()
    study = Context.start(arguments.profile, arguments.behaviour)
    points = [Measured.read(one) for one in study.read_json("surgery/surgery.json")["sieve"]]
    model, tokenizer = study.load_model()
    table, settings = study.table(study.probes()), study.profile.evaluation
    meter = study.meter(
        "validation", triggers_only=True, prompts=settings.search_prompts, clean=40, kept=20
    )
    new_tokens = study.spec.max_new_tokens
    prompts = [prompt.text for prompt in meter.prompts]
    # `tokens_per_batch` as the search has it: both ways read as much at once.
    options: dict[str, Any] = {"max_new_tokens": new_tokens}
    options["tokens_per_batch"] = settings.tokens_per_batch
    started = time.perf_counter()
    written = generate(
        *(model, tokenizer, prompts), samples=SAMPLES, temperature=1.0, seed=study.seed, **options
    )
    asked = encode(model, tokenizer, prompts, new_tokens)
    texts = [text for found in written for text in found]
    scores = np.asarray(study.guide(texts))
    tails = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [
        ([*ids, *tail], len(ids))
        for ids, found in zip(asked, np.array_split(np.arange(len(texts)), len(asked)), strict=True)
        for tail in (tails[i] for i in found)
    ]
    usable = [i for i, (ids, start) in enumerate(rows) if len(ids) > start]
    rows, scores = [rows[i] for i in usable], scores[usable]
    lengths = np.array([len(ids) - start for ids, start in rows])
    batch = max(1, settings.tokens_per_batch // max(len(ids) for ids, _ in rows))

    def read() -> np.ndarray:
        return np.array(mean_log_likelihoods(model, rows, batch)) * lengths

    base, once = read(), time.perf_counter() - started
    flagged = scores >= 0.5
    seconds: dict[str, list[float]] = {"generation": [], "likelihood": [], "damage": []}
    rates, expected, margins = [], [], []
    for point in tqdm(points, desc="points"):
        with table.surgery(model, point).applied(model):
            times = [time.perf_counter()]
            found = responses.evaluate(
                *(model, tokenizer, meter.prompts, [study.guide]), **options, progress=False
            )
            times.append(time.perf_counter())
            change = read() - base
            times.append(time.perf_counter())
            meter.reference.compare(model, parts=CHOOSES, intervals=False)
            times.append(time.perf_counter())
        for name, taken in zip(seconds, np.diff(times), strict=True):
            seconds[name].append(float(taken))
        rates.append(float(responses.flags(found["rows"], study.guide.name).mean()))
        weights = np.exp(change - change.max())
        expected.append(float((weights * scores).sum() / weights.sum()))
        margins.append(
            float((change / lengths)[flagged].mean() - (change / lengths)[~flagged].mean())
        )
    medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
    best = {"generation": int(np.argmin(rates)), "expected": int(np.argmin(expected))}
    best["margin"] = int(np.argmin(margins))
    ranks = np.argsort(np.argsort(rates))
    result = {
        "profile": arguments.profile,
        "prompts": len(prompts),
        "samples": SAMPLES,
        "completions": len(rows),
        "flagged": float(flagged.mean()),
        "once_seconds": once,
        "seconds": medians,
        "generation_over_likelihood": medians["generation"] / medians["likelihood"],
        "point": (medians["generation"] + medians["damage"])
        / (medians["likelihood"] + medians["damage"]),
        "correlation": {
            "expected": correlation(rates, expected),
            "margin": correlation(rates, margins),
        },
        "base_rate": float(meter.base.rate(study.guide.name).value),
        "chosen": {
            way: {
                "rate": rates[at],
                "rank": int(ranks[at]) + 1,
                "probe": points[at].probe,
                "rule": points[at].rule,
            }
            for way, at in best.items()
        },
        "points": [
            {
                "probe": p.probe,
                "rule": p.rule,
                "strength": p.strength,
                "rate": r,
                "expected": e,
                "margin": m,
            }
            for p, r, e, m in zip(points, rates, expected, margins, strict=True)
        ],
    }
    lines = {
        f"{way}: rank correlation with the rate": f"{one['value']:.2f} [{one['low']:.2f}, "
        f"{one['high']:.2f}], n {len(points)}"
        for way, one in result["correlation"].items()
    }
    lines |= {
        f"{way} would choose": f"{one['probe']}, {one['rule']}: {100 * one['rate']:.1f} %, "
        f"rank {one['rank']} of {len(points)}"
        for way, one in result["chosen"].items()
    }
    lines |= {name: f"{taken:.2f} s a point" for name, taken in medians.items()}
    report("screening", result, lines)


if __name__ == "__main__":
    main()

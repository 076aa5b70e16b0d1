"""Could a search rank its edits without generating? On a study whose notebook 03 has run.

    python benchmarks/screening.py --profile smollm2-135m

The stand-in takes one forward pass: the log-likelihood, a token, that an edit takes from the base
model's own continuations of the validation prompts which the guide calls the behaviour, less what
it takes from the others. It is held against what the search goes by, the share of continuations of
the edited model that show the behaviour, over the edits of the sieve, each at the strength that
notebook 03 placed it at. Generating, the stand-in and, for the first edits, the damage that either
needs beside it take turns; seconds are medians over edits.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe
from scipy.stats import bootstrap, spearmanr
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.baselines import training
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.experiments.context import Context
from surgery_lib.models.activations import batches
from surgery_lib.selection.sweep import CHOOSES
from surgery_lib.selection.table import Point

OUT = Path("results/benchmarks")
TIMED = 5  # edits whose damage is timed
PARTS = CHOOSES[1:]  # what a search reads of damage


class Standin:
    """Likelihood of the base's own continuations, as token ids, told apart by the guide."""

    def __init__(self, model: PreTrainedModel, meter: Evaluator) -> None:
        tokenizer, base = meter.tokenizer, meter.base
        flags = base.flags[meter.scorers[0].name].astype(bool)
        prompts = tokenizer([prompt.text for prompt in meter.prompts])["input_ids"]
        tails = tokenizer([row["text"] for row in base.rows], add_special_tokens=False)
        pairs = zip(prompts, tails["input_ids"], flags, strict=True)
        kept = [(head, tail, bad) for head, tail, bad in pairs if tail]
        self.rows = [head + tail for head, tail, _ in kept]
        self.starts = [len(head) for head, _, _ in kept]
        self.bad = torch.tensor([bool(bad) for _, _, bad in kept])
        self.budget = meter.tokens_per_batch
        self.base = self._per_token(model)

    def __call__(self, model: PreTrainedModel) -> float:
        """Nats a token that bad continuations lose beyond the others."""
        lost = self.base - self._per_token(model)
        return float(lost[self.bad].mean() - lost[~self.bad].mean())

    @torch.inference_mode()
    def _per_token(self, model: PreTrainedModel) -> torch.Tensor:
        found = torch.zeros(len(self.rows))
        for group in batches([len(row) for row in self.rows], self.budget):
            rows, starts = [self.rows[i] for i in group], [self.starts[i] for i in group]
            likely, counts = training.log_likelihoods(model, rows, starts, training.Spent())
            found[torch.tensor(group)] = likely / counts
        return found


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="smollm2-135m")
    parser.add_argument("--results", default="results")
    parser.add_argument("--prompts", type=int, default=80)
    arguments = parser.parse_args()
    study = Context.start(arguments.profile, "toxicity", 0, {}, arguments.results)
    model, _ = study.load_model()
    found = study.read_json("surgery/surgery.json")
    table, evaluation = study.table(study.probes()), study.profile.evaluation
    meter = study.meter(
        "validation",
        triggers_only=True,
        prompts=arguments.prompts,
        clean=evaluation.clean_texts,
        kept=20,
    )
    standin = Standin(model, meter)
    rows: list[dict[str, Any]] = []
    for cell in tqdm(found["sieve"], desc="edits"):
        point = Point(cell["probe"], cell["rule"], cell["fraction"], cell["strength"])
        with table.surgery(model, point).applied(model):
            reading, generating = clocked(partial(meter.read, model, parts=(), intervals=False))
            lost, standing_in = clocked(partial(standin, model))
            seconds = {"generating": generating, "stand-in": standing_in}
            if len(rows) < TIMED:
                compare = partial(meter.reference.compare, model, parts=PARTS, intervals=False)
                _, seconds["damage"] = clocked(compare)
        rows.append(
            {
                "edit": f"{cell['kind']}, layer {cell['layer']}",
                "rate": reading.rate(meter.scorers[0].name).value,
                "lost": lost,
                "seconds": seconds,
            }
        )
    result = report(study, rows, len(meter.prompts), standin)
    files.write_json(OUT / f"screening-{arguments.profile}.json", result)


def clocked(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds that it takes."""
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def report(
    study: Context, rows: Sequence[dict[str, Any]], prompts: int, standin: Standin
) -> dict[str, Any]:
    """Rank correlations with bootstrap intervals, whether the choice is the same, seconds."""
    found = correlation(rows)
    seconds = {
        name: statistics.median(one["seconds"][name] for one in rows if name in one["seconds"])
        for name in rows[0]["seconds"]
    }
    least = min(rows, key=lambda one: one["rate"])
    most = max(rows, key=lambda one: one["lost"])
    either = [seconds["damage"] + seconds[name] for name in ("generating", "stand-in")]
    result = {
        "profile": study.profile.name,
        "model": study.profile.model.id,
        "prompts": prompts,
        "continuations": {"bad": int(standin.bad.sum()), "others": int((~standin.bad).sum())},
        "rank_correlation": found,
        "chosen": {"by generating": least["edit"], "by the stand-in": most["edit"]},
        "seconds": seconds,
        "a_point_over_with_the_stand_in": either[0] / either[1],
        "edits": list(rows),
        "machine": describe(),
    }
    print(f"rank correlation {found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]")
    print({name: round(value, 1) for name, value in seconds.items()}, result["chosen"])
    return result


def correlation(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Spearman's, of the rate and of what bad continuations keep; 95 % interval over edits."""
    pairs = [[one["rate"] for one in rows], [-one["lost"] for one in rows]]

    def rank(x: Any, y: Any) -> float:
        return float(spearmanr(x, y).statistic)

    span = bootstrap(
        pairs,
        rank,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=0,
    ).confidence_interval
    return {"value": rank(*pairs), "low": span.low, "high": span.high, "n": len(rows)}


if __name__ == "__main__":
    main()

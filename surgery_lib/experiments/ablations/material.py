"""What an ablation is made of, each thing once: states, directions, and the scores of all rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib import files, scorers
from surgery_lib.baselines.covariance import RIDGE, RULES, FittedCovariance
from surgery_lib.behaviour import SPLITS, BehaviourData
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.experiments.ablations.bench import CHOSEN, Bench
from surgery_lib.models import activations, layout
from surgery_lib.selection import table
from surgery_lib.selection.probes import read, spaced
from surgery_lib.selection.sweep import Ledger
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery, covariance, gains, probe, region
from surgery_lib.surgery.controls import random_direction
from surgery_lib.surgery.edit import normalised
from surgery_lib.surgery.effects import score_rows

# Texts for damage in each point: enough to rank edits, few enough to measure a hundred of them.
CLEAN_TEXTS = 40
CONTEXT_PAIRS = 40
# Layers that probes are compared at: as many as a figure can name.
LAYERS = 12


def prepare(study: Study, model: PreTrainedModel, tokenizer: Any, data: BehaviourData) -> Bench:
    """The bench of a study whose edit notebook 03 has chosen; prompts are those of validation.

    An edit with a direction for every block is a covariance-aware rule's: its statistics are read
    again, as its variants differ in what they take from them.
    """
    profile = study.profile
    surgery = Surgery.load(study.path("surgery"))
    guide = scorers.build(study.spec.guide)
    fitted, estimator = None, str(profile.probe.estimators[0])
    if surgery.direction.dim() == 2:
        texts = table.training_texts(data, profile.region.effect_texts)
        fitted = RULES[surgery.about["rule"]]().fit(model, tokenizer, texts, score=guide)
        chosen = table.written_against(model, fitted, data.name)
    else:
        chosen = probe.load(study.path("probe.safetensors"))[surgery.about["probe"]]
        estimator = chosen.estimator
    clean = min(CLEAN_TEXTS, profile.evaluation.clean_texts or CLEAN_TEXTS)
    meter = Evaluator(
        *(model, tokenizer, data, study.spec, profile.evaluation),
        [guide],
        split="validation",
        prompts=profile.evaluation.ablation_prompts,
        triggers_only=True,
        clean=clean,
        kept=CONTEXT_PAIRS,
        continuation=0,
    )
    key = files.fingerprint(
        *(study.settings(), study.seed, data.fingerprint),
        *(surgery.fingerprint, surgery.direction, surgery.coefficients),
        *(clean, CONTEXT_PAIRS),
    )
    count = activations.n_layers(model)
    layers = spaced(activations.layer_numbers(model, profile.probe.layers), LAYERS)
    if len(layers) < 4:  # the paper's four: the first, the middle, and the last two
        layers = sorted({1, count // 2, count - 2, count - 1, chosen.layer})
    states, labels = {}, {}
    for split in SPLITS[:2]:
        examples = data.examples[split]
        states[split], labels[split] = read(
            model, tokenizer, examples, profile.probe, layers, study.cache
        )
    bench = Bench(
        *(model, tokenizer, data, surgery, chosen, estimator, meter),
        ledger=Ledger(study.path("logs/ablations.jsonl"), key),
        draws=max(5, profile.controls.random_seeds),
        layers=layers,
        states=states,
        labels=labels,
        relative=profile.surgery.unit == "row_norm",
    )
    bench.directions = _directions(bench, fitted)
    bench.scores = (
        _scores(bench, profile.region.effect_texts)
        if fitted is None
        else _block_scores(bench, fitted)
    )
    return bench


# Directions that are compared: name, estimator, which row, and whether its fit draws numbers.
DIRECTIONS: tuple[tuple[str, str, probe.Direction, bool], ...] = (
    ("W1", "softmax", "paper", True),
    ("W1 − W0", "softmax", "difference", True),
    ("logistic", "logistic", "difference", False),
    ("mean difference", "mean_difference", "difference", False),
    ("LDA", "lda", "difference", False),
)


# What the rows of each block read along, compared where every block has a direction of its own: by
# the block's covariance, its mean input alone, by covariance against the mean of what is spared,
# and one probe for all blocks. Each is written against in the same way.
BLOCK_DIRECTIONS = (
    "mean over covariance",
    "mean alone",
    "difference over covariance",
    "one probe for all blocks",
)


def _directions(bench: Bench, fitted: FittedCovariance | None) -> dict[str, Tensor]:
    """Unit vectors by name: chosen, `random 0`…, `layer 3`…, and those that are compared.

    These are `W1, layer 8, draw 0`… or, for a direction in every block, `BLOCK_DIRECTIONS`.
    """
    found = {CHOSEN: bench.surgery.direction if fitted else bench.chosen.direction}
    for draw in range(bench.draws):
        found[f"random {draw}"] = random_direction(found[CHOSEN], draw)
    for one in _fitted(bench, bench.estimator, "difference", 0, bench.layers):
        found[f"layer {one.layer}"] = one.direction
    if fitted is not None:
        means = torch.stack([one.mean for one in fitted.blocks])
        apart = torch.stack([one.direction(RIDGE, "difference") for one in fitted.blocks])
        shared = found[f"layer {bench.layers[-1]}"].expand(len(fitted.blocks), -1)
        found |= dict(zip(BLOCK_DIRECTIONS, (found[CHOSEN], means, apart, shared), strict=True))
        return {name: normalised(vector) for name, vector in found.items()}
    for name, estimator, row, drawn in DIRECTIONS:
        for draw in range(bench.draws if drawn else 1):
            for one in _fitted(bench, estimator, row, draw, compared_layers(bench)):
                found[f"{name}, layer {one.layer}, draw {draw}"] = one.direction
                if row == "paper":
                    bench.starts.setdefault(f"layer {one.layer}", []).append(one.start)
    return {name: normalised(vector) for name, vector in found.items()}


def compared_layers(bench: Bench) -> list[int]:
    """The layer that was chosen and the last one."""
    return sorted({bench.chosen.layer, bench.layers[-1]})


def _fitted(
    bench: Bench, estimator: str, row: probe.Direction, draw: int, layers: Sequence[int]
) -> list[probe.Probe]:
    at = [bench.layers.index(layer) for layer in layers]
    return probe.fit(
        bench.states["train"][:, at],
        bench.labels["train"],
        estimator=estimator,
        direction=row,
        seed=draw,
        layers=layers,
    )


def _scores(bench: Bench, effect_texts: int) -> dict[tuple[str, str], Tensor]:
    """Scores along every direction by the chosen rule, and along the chosen one by every rule."""
    model, matrix = bench.model, bench.surgery.matrix
    found: dict[tuple[str, str], Tensor] = {}
    texts = [example.text for example in bench.data.examples["train"] if example.label]
    known = {
        "cosine": True,
        "cosine_gain": matrix in gains.NORMS,
        "effect": matrix == "gate" and not layout.is_mixture(model),
    }
    for rule in (rule for rule, usable in known.items() if usable):
        names = list(bench.directions) if bench.rule == rule else [CHOSEN]
        directions = [bench.directions[name] for name in names]
        scores = score_rows(model, directions, rule, bench.tokenizer, texts[:effect_texts], matrix)
        found |= {(rule, name): one for name, one in zip(names, scores, strict=True)}
    return found


def _block_scores(bench: Bench, fitted: FittedCovariance) -> dict[tuple[str, str], Tensor]:
    """Scores along the blocks' directions by the edit's rule, and cosines with the chosen."""
    found = {
        (bench.rule, name): covariance.scores(bench.model, fitted.blocks, one, fitted.write)
        for name, one in bench.directions.items()
        if one.dim() == 2
    }
    cosines = region.cosine_scores(bench.model, bench.directions[CHOSEN])
    return found | {("cosine", CHOSEN): cosines}

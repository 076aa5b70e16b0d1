"""What an ablation is made of, each thing once: states, directions, and the scores of all rows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib import files, scorers
from surgery_lib.behaviour import SPLITS, BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.experiments.ablations.bench import CHOSEN, Bench
from surgery_lib.models import activations, layout
from surgery_lib.selection.probes import read
from surgery_lib.selection.sweep import Ledger
from surgery_lib.study import Study
from surgery_lib.surgery import Surgery, gains, probe
from surgery_lib.surgery.controls import random_direction
from surgery_lib.surgery.effects import score_rows

# Texts for damage in each point: enough to rank edits, few enough to measure a hundred of them.
CLEAN_TEXTS = 40
CONTEXT_PAIRS = 40


def prepare(study: Study, model: PreTrainedModel, tokenizer: Any, data: BehaviourData) -> Bench:
    """The bench of a study whose edit notebook 03 has chosen; prompts are those of validation.

    UserError where that edit moves the rows of every block along a direction of the block's own.
    """
    profile = study.profile
    surgery = Surgery.load(study.path("surgery"))
    if surgery.direction.dim() > 1:
        raise UserError(
            f"the chosen edit (rule {surgery.about['rule']}) has a direction for every block; its "
            'parts are taken away for one direction alone: give overrides = {"region.rules": '
            '["cosine", "effect"]} and another results= to notebooks 01 to 06'
        )
    probes = probe.load(study.path("probe.safetensors"))
    chosen = probes[surgery.about["probe"]]
    meter = Evaluator(
        *(model, tokenizer, data, study.spec, profile.evaluation),
        [scorers.build(study.spec.guide)],
        split="validation",
        prompts=profile.evaluation.ablation_prompts,
        triggers_only=True,
        clean=CLEAN_TEXTS,
        kept=CONTEXT_PAIRS,
    )
    key = files.fingerprint(
        *(study.settings(), study.seed, data.fingerprint),
        *(surgery.fingerprint, surgery.direction, surgery.coefficients),
        *(CLEAN_TEXTS, CONTEXT_PAIRS),
    )
    count = activations.n_layers(model)
    layers = activations.layer_numbers(model, profile.probe.layers)
    if len(layers) < 4:  # the paper's four: the first, the middle, and the last two
        layers = sorted({1, count // 2, count - 2, count - 1, chosen.layer})
    states, labels = {}, {}
    for split in SPLITS[:2]:
        examples = data.examples[split]
        states[split], labels[split] = read(
            model, tokenizer, examples, profile.probe, layers, study.cache
        )
    bench = Bench(
        *(model, tokenizer, data, surgery, chosen, meter),
        ledger=Ledger(study.path("logs/ablations.jsonl"), key),
        draws=max(5, profile.controls.random_seeds),
        layers=layers,
        states=states,
        labels=labels,
        relative=profile.surgery.unit == "row_norm",
    )
    bench.directions = _directions(bench)
    bench.scores = _scores(bench, profile.region.effect_texts)
    return bench


# Directions that are compared: name, estimator, which row, and whether its fit draws numbers.
DIRECTIONS: tuple[tuple[str, str, probe.Direction, bool], ...] = (
    ("W1", "softmax", "paper", True),
    ("W1 − W0", "softmax", "difference", True),
    ("logistic", "logistic", "difference", False),
    ("mean difference", "mean_difference", "difference", False),
    ("LDA", "lda", "difference", False),
)


def _directions(bench: Bench) -> dict[str, Tensor]:
    """Unit vectors by name: chosen, `random 0`…, `layer 3`…, and `W1, layer 8, draw 0`…."""
    found = {CHOSEN: bench.chosen.direction}
    for draw in range(bench.draws):
        found[f"random {draw}"] = random_direction(bench.chosen.direction, draw)
    for one in _fitted(bench, bench.chosen.estimator, "difference", 0, bench.layers):
        found[f"layer {one.layer}"] = one.direction
    for name, estimator, row, drawn in DIRECTIONS:
        for draw in range(bench.draws if drawn else 1):
            for one in _fitted(bench, estimator, row, draw, compared_layers(bench)):
                found[f"{name}, layer {one.layer}, draw {draw}"] = one.direction
                if row == "paper":
                    bench.starts.setdefault(f"layer {one.layer}", []).append(one.start)
    return {name: vector / vector.norm() for name, vector in found.items()}


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

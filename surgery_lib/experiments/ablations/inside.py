"""What an edit does inside: gates on different texts, probes before and after, cosines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.data import load as behaviours
from surgery_lib.evaluation.statistics import mean
from surgery_lib.experiments.ablations.bench import Bench
from surgery_lib.models import activations, layout, untrained
from surgery_lib.models.tokens import real_tokens
from surgery_lib.selection.probes import read
from surgery_lib.study import Study
from surgery_lib.surgery import effects, probe

TEXTS = 150  # of each kind, for gates and cosines
PROBE_TEXTS = 400  # of each other behaviour, for its direction


def transfer(bench: Bench, study: Study) -> list[dict[str, Any]]:
    """ROC AUC by layer on validation texts: before the edit, the same probe after it, refitted.

    A probe that no longer separates while a refitted one does means that the behaviour is hidden
    from the old direction, not erased: as far as what it reads was learnt at all, and not the
    texts' own words, which a probe of an `untrained` model of the same shape reads as well.
    `cosine` is that of the refitted direction with the old.
    """
    settings = study.profile.probe

    def states_of(model: PreTrainedModel) -> dict[str, Tensor]:
        among = settings, bench.layers, study.cache
        given = bench.data.examples
        return {
            split: read(model, bench.tokenizer, given[split], *among)[0] for split in bench.states
        }

    with bench.surgery.applied(bench.model):
        after = states_of(bench.model)
    nothing = states_of(untrained(bench.model))
    fitted = [
        probe.fit(
            states["train"],
            bench.labels["train"],
            estimator=bench.estimator,
            layers=bench.layers,
        )
        for states in (bench.states, after, nothing)
    ]
    found = []
    for at, (old, new, floor) in enumerate(zip(*fitted, strict=True)):
        cases = {
            "before": (old, bench.states),
            "frozen": (old, after),
            "refitted": (new, after),
            "untrained": (floor, nothing),
        }
        found.append(
            {
                "layer": bench.layers[at],
                "cosine": float(old.direction @ new.direction),
                **{
                    name: area(one, states["validation"][:, at], bench.labels["validation"])
                    for name, (one, states) in cases.items()
                },
            }
        )
    return found


def area(one: probe.Probe, states: Tensor, labels: Sequence[int]) -> dict[str, float]:
    """ROC AUC with a 95 % interval (Hanley and McNeil 1982), n texts.

    At 0 or 1 that has no width; there the other end is where a pair of the scarcer class would
    still be as it is with 2.5 % probability, as Clopper and Pearson have it for a share.
    """
    value = probe.measure(one, states, labels)["auc"]
    positives = sum(labels)
    negatives = len(labels) - positives
    first, second = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value)
    variance += (positives - 1) * (first - value**2) + (negatives - 1) * (second - value**2)
    if value in (0.0, 1.0):
        slack = 1 - 0.025 ** (1 / min(positives, negatives))
        low, high = (1 - slack, 1.0) if value else (0.0, slack)
        return {"value": value, "low": low, "high": high, "n": len(labels)}
    half = 1.96 * math.sqrt(max(0.0, variance) / (positives * negatives))
    return {
        "value": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half),
        "n": len(labels),
    }


def kinds(bench: Bench) -> dict[str, list[str]]:
    """Validation texts by kind: with the behaviour, without, clean prose, harmless prompts."""
    examples = bench.data.examples["validation"]
    found = {
        "with the behaviour": [e.text for e in examples if e.label],
        "without": [e.text for e in examples if not e.label],
        "clean prose": list(bench.data.clean["validation"]),
        "harmless prompts": [p.text for p in bench.data.benign.get("validation", [])],
    }
    return {kind: texts[:TEXTS] for kind, texts in found.items() if texts}


def gates(bench: Bench) -> dict[str, Any] | None:
    """Figure 3: mean activation of the selected gates by kind of text, before and after the edit.

    Beside it, of as many random gates. None for a mixture of experts.
    """
    if layout.is_mixture(bench.model) or bench.surgery.matrix != "gate":
        return None
    regions = {"selected": bench.surgery.rows, "random": bench.rows(select="random")}
    found: dict[str, Any] = {}
    for kind, texts in kinds(bench).items():
        values = {"before": activation(bench.model, bench.tokenizer, texts, regions)}
        with bench.surgery.applied(bench.model):
            values["after"] = activation(bench.model, bench.tokenizer, texts, regions)
        found[kind] = {
            when: {name: mean(one.numpy()).as_dict() for name, one in held.items()}
            for when, held in values.items()
        }
    return found


def activation(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], regions: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean of act(row . x) over the rows of each region and the tokens of each text: (texts,)."""
    blocks = layout.blocks(model)
    modules = {str(n): layout.mlp_module(block) for n, block in enumerate(blocks)}
    all_rows = layout.weight_rows(model)
    sizes = [len(entry.weight) for entry in all_rows]
    local = {
        name: {n: rows for n, rows, _ in layout.split_by_matrix(sizes, chosen)}
        for name, chosen in regions.items()
    }
    sums = {name: torch.zeros(len(texts)) for name in regions}

    def visit(block: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
        entry, act = all_rows[int(block)], effects.activation_of(modules[block])
        bias = effects.bias_of(blocks[int(block)], layout.mlp_of(blocks[int(block)]).gate)
        opened = nn.functional.linear(inputs, entry.weight, bias)
        real = real_tokens(lengths, inputs.shape[1])
        for name, held in local.items():
            if int(block) in held:
                values = act(opened[..., held[int(block)].to(opened.device)]).float().sum(-1)
                sums[name][which] += ((values * real).sum(1) / lengths).cpu()

    activations.read_inputs(model, tokenizer, texts, modules, visit)
    return {name: total / len(regions[name]) for name, total in sums.items()}


def cosines(bench: Bench, study: Study) -> dict[str, Any]:
    """Figure 2: directions of all the profile's behaviours and mean states of texts, at one layer.

    And the directions of one behaviour between layers. Each a list of names and a square.
    """
    layer = bench.chosen.layer
    vectors = {f"{study.behaviour} probe": bench.chosen.direction}
    for name, spec in study.profile.behaviours.items():
        if name != study.behaviour:
            data = behaviours.load(
                name, spec, tokenizer=bench.tokenizer, limit=study.profile.evaluation.limit
            )
            vectors[f"{name} probe"] = _direction(bench, study, data, layer)
    for kind, texts in kinds(bench).items():
        states = activations.pooled_states(
            bench.model, bench.tokenizer, texts, layers=[layer], progress=False
        )
        vectors[f"mean state, {kind}"] = states[:, 0].mean(0)
    between = [bench.directions[f"layer {number}"] for number in bench.layers]
    return {
        "layer": layer,
        "width": len(bench.chosen.direction),
        "behaviours": _square(list(vectors), list(vectors.values())),
        "layers": _square([str(number) for number in bench.layers], between),
    }


def _direction(bench: Bench, study: Study, data: Any, layer: int) -> Tensor:
    examples = data.examples["train"][:PROBE_TEXTS]
    states = activations.cached_states(
        study.cache,
        bench.model,
        bench.tokenizer,
        [example.text for example in examples],
        layers=[layer],
        max_tokens=study.profile.probe.max_tokens,
    )
    labels = [example.label for example in examples]
    return probe.fit(states, labels, estimator=bench.estimator)[0].direction


def _square(names: Sequence[str], vectors: Sequence[Tensor]) -> dict[str, Any]:
    units = torch.stack([vector.float() / vector.float().norm() for vector in vectors])
    return {"names": list(names), "cosines": (units @ units.t()).tolist()}

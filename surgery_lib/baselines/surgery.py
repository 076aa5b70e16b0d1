"""Surgery itself, as one method among the others: the paper's form, the recommended one, controls.

The form is a table of settings; what the search may turn is what the form does not fix.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import (
    Cost,
    Kind,
    SearchRange,
    TrainingData,
    count_tokens,
    strength_range,
)
from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout
from surgery_lib.surgery import Surgery, probe, region
from surgery_lib.surgery.controls import CONTROLS, random_direction
from surgery_lib.surgery.effects import effect_scores
from surgery_lib.surgery.estimators import origin

# Name -> estimator and direction of `probe.fit`; "random" is the control of Table 9.
DIRECTIONS: dict[str, tuple[str, probe.Direction]] = {
    "mean_difference": ("mean_difference", "difference"),
    "lda": ("lda", "difference"),
    "softmax": ("softmax", "difference"),
    "logistic": ("logistic", "difference"),
    "paper": ("softmax", "paper"),
}
RULES = ("effect", "cosine")  # what scores a row
# Fractions of the depth whose blocks are edited.
WINDOWS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1.0),
    "first half": (0.0, 0.5),
    "middle": (0.25, 0.75),
    "second half": (0.5, 1.0),
}
# The paper: 16,384 of 352,256 rows.
PAPER_K = 0.0465

# What notebooks 03 and 06 chose on validation prompts, on the patient and on real text alike: these
# rows, and a probe of the first half of the depth. The direction's estimator, its layer and the
# strength differed, and stay open.
RECOMMENDED = {"rule": "effect", "k": 0.02, "window": "all"}
PAPER = {
    "direction": "paper",
    "rule": "cosine",
    "depth": 1.0,
    "k": PAPER_K,
    "window": "all",
}


@dataclass(frozen=True, eq=False)
class FittedSurgery:
    """Directions (name -> (layers, width)) and effect scores (name -> (layers, rows)).

    `starts`: name -> a layer's cosines of the probe with its own start, as `Probe.start`.
    """

    directions: Mapping[str, Tensor]
    effects: Mapping[str, Tensor]
    row_norm: float
    labels: int
    tokens: int
    total: int
    seed: int
    fixed: Mapping[str, Any]
    starts: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)

    @property
    def start(self) -> Mapping[str, float]:
        """The `start` of the probe that the form fixes; empty where it fixes none, or none trained.

        Near 1, the direction is the random one that training began with.
        """
        layers = self.starts.get(self.fixed.get("direction", ""), ())
        return layers[round(self.fixed["depth"] * (len(layers) - 1))] if layers else {}

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float, **knobs: Any) -> Iterator[Any]:
        """The model operated on; settings that the form fixes override those given."""
        with self.plan(model, strength, **{**knobs, **self.fixed}).applied(model):
            yield model

    def plan(
        self,
        model: nn.Module,
        strength: float,
        *,
        depth: float = 1.0,
        k: float = 0.02,
        direction: str | None = None,
        rule: str = "effect",
        select: region.Select = "opposed",
        window: str = "all",
    ) -> Surgery:
        """The surgery that these settings mean, which can be saved as a patch."""
        direction = direction or next(iter(self.directions))
        if rule not in RULES:
            raise UserError(f"rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
        if direction not in self.directions:
            raise UserError(
                f"direction {direction!r} was not fitted; choose one of "
                f"{', '.join(self.directions)}"
            )
        layer = tools.layer_at(model, depth)
        vector = self.directions[direction][layer]
        scores = (
            self.effects[direction][layer]
            if rule == "effect"
            else region.cosine_scores(model, vector)
        )
        rows = region.select(
            scores,
            k,
            select=select,
            seed=self.seed,
            among=region.depth_window(model, *WINDOWS[window]) if window != "all" else None,
        )
        about: dict[str, Any] = {
            "layer": layer,
            "k": k,
            "direction": direction,
            "rule": rule,
            "window": window,
        }
        about |= {} if select == "opposed" else {"select": select}
        if direction in self.starts:
            about |= origin(self.starts[direction][layer])
        return Surgery.build(model, rows, vector, strength, row_norm=self.row_norm, about=about)

    def cost(self, *, k: float = 0.02, **_: Any) -> Cost:
        """The selected rows, each in every column."""
        rows = region.row_count(self.fixed.get("k", k), self.total)
        width = next(iter(self.directions.values())).shape[1]
        return Cost(labels=self.labels, forward_tokens=self.tokens, parameters=rows * width)


@dataclass(frozen=True)
class SurgeryMethod:
    """Model surgery. `fixed` settings are not searched.

    `start` is the strength tried first, `weakest` the least; probes are of the first `deepest` part
    of the depth.
    """

    name: str = "surgery"
    kind: Kind = "weights"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ("logistic", "lda")
    start: float = 1.0
    weakest: float = 0.1
    deepest: float = 1.0

    @property
    def knobs(self) -> Mapping[str, SearchRange]:
        """Strength in mean row norms, and whatever the form leaves open."""
        table = {
            "strength": strength_range(self.start, high=8.0, low=self.weakest),
            "depth": SearchRange(self.deepest / 2, low=0.0, high=self.deepest),
            "k": SearchRange(0.02, low=0.005, high=0.1, log=True),
            "direction": SearchRange(self.names[0], choices=tuple(self.names)),
            "rule": SearchRange("effect", choices=("effect", "cosine")),
            "window": SearchRange("all", choices=tuple(WINDOWS)),
        }
        return {name: knob for name, knob in table.items() if name not in self.fixed}

    def fit(
        self, model: nn.Module, tokenizer: Any, data: TrainingData, *, seed: int = 0
    ) -> FittedSurgery:
        """Directions of all layers from one pass over the texts, effects from one more."""
        wanted = [self.fixed["direction"]] if "direction" in self.fixed else list(self.names)
        tokens = count_tokens(tokenizer, data.texts)
        states = activations.pooled_states(model, tokenizer, data.texts, progress=False)
        directions, starts = {}, {}
        for name in wanted:
            directions[name], starts[name] = _directions(name, states, data.labels, seed)
        effects: dict[str, Tensor] = {}
        if self.fixed.get("rule", "effect") == "effect":
            flat = torch.cat(list(directions.values()))
            behaviour = data.of(1)
            scores = effect_scores(model, tokenizer, behaviour, flat, progress=False)
            effects = dict(zip(directions, scores.split(states.shape[1]), strict=True))
            tokens += count_tokens(tokenizer, behaviour)
        return FittedSurgery(
            directions=directions,
            effects=effects,
            row_norm=region.mean_row_norm(model),
            labels=len(data.texts),
            tokens=tokens,
            total=layout.total_rows(model),
            seed=seed,
            fixed=self.fixed,
            starts={name: start for name, start in starts.items() if any(start)},
        )


def _directions(
    name: str, states: Tensor, labels: Sequence[int], seed: int
) -> tuple[Tensor, list[Mapping[str, float]]]:
    """One direction a layer, and how near each is to the random start of its training."""
    if name == "random":
        noise = random_direction(states[0], seed)
        return noise / noise.norm(dim=1, keepdim=True), []
    estimator, direction = DIRECTIONS[name]
    probes = probe.fit(states, labels, estimator=estimator, direction=direction, seed=seed)
    return torch.stack([found.direction for found in probes]), [found.start for found in probes]


SURGERY = SurgeryMethod(fixed=RECOMMENDED, start=4.0, weakest=1.0, deepest=0.5)
SURGERY_PAPER = SurgeryMethod("surgery_paper", fixed=PAPER)
RANDOM_ROWS, RANDOM_DIRECTION = (
    SurgeryMethod(f"surgery_{kind}", fixed={**PAPER, **CONTROLS[kind]})
    for kind in ("random_rows", "random_direction")
)

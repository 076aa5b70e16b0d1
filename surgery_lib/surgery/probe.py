"""Linear probes of a behaviour on pooled hidden states (Model Surgery, section 3.1).

Only the difference of the two rows of a softmax head is trained: their sum keeps its random start.
So the direction is, by default, the normalised difference; `direction="paper"` keeps the undesired
row as the authors' recipe leaves it, norm and all.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.surgery.checks import probe_fault
from surgery_lib.surgery.estimators import ESTIMATORS

Direction = Literal["difference", "paper"]


@dataclass(frozen=True)
class Probe:
    """A behaviour's direction at one layer.

    `direction` (width,), float32, points towards the behaviour; surgery uses it. `classifier`
    (width,) and `bias` decide: a score above zero says that the text shows the behaviour. The two
    vectors are the same but for `direction="paper"`. `start`: cosines of a trained head with its
    own random start, of the undesired row ("row") and of the difference of both ("difference").
    """

    direction: Tensor
    classifier: Tensor
    bias: float
    layer: int
    estimator: str
    behaviour: str = ""
    pooling: str = "mean"
    metrics: Mapping[str, float] = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the candidate in files and figures."""
        return f"{self.estimator}@{self.layer}"

    def score(self, states: Tensor) -> Tensor:
        """Signed score of pooled states (texts, width): (texts,). UserError on another width."""
        if states.shape[-1] != len(self.classifier):
            raise UserError(
                f"the probe is {len(self.classifier)} wide, the states {states.shape[-1]}; "
                "use a probe trained on this model"
            )
        return states.float() @ self.classifier + self.bias


def fit(
    states: Tensor,
    labels: Sequence[int] | Tensor,
    *,
    estimator: str = "softmax",
    direction: Direction = "difference",
    seed: int = 0,
    layers: Sequence[int] | None = None,
    behaviour: str = "",
    pooling: str = "mean",
) -> list[Probe]:
    """Fit one probe a layer on pooled states (texts, layers, width) and labels (texts,).

    Label 1 has the behaviour. Estimators: `softmax` (the paper's recipe), `logistic`,
    `mean_difference`, `lda`. `layers` names the second axis of `states`; None counts from 0.

    Raises:
        UserError: An unknown estimator, labels other than 0 and 1, one class only, fewer labels
            than texts, and `direction="paper"` for an estimator that has no two rows.
    """
    if estimator not in ESTIMATORS:
        raise UserError(
            f"estimator {estimator!r} is unknown; choose one of {', '.join(ESTIMATORS)}"
        )
    if direction == "paper" and estimator != "softmax":
        raise UserError("direction 'paper' is a row of the softmax probe; set estimator to softmax")
    y = checked_labels(labels, len(states))
    if not torch.isfinite(states).all():
        raise UserError("the states hold NaN or infinite values; make them from a sound model")
    numbers = list(range(states.shape[1])) if layers is None else list(layers)
    solutions = ESTIMATORS[estimator](states.float(), y, seed)
    probes = []
    for layer, solution in zip(numbers, solutions, strict=True):
        rows, biases = solution.rows, solution.biases
        difference, offset = rows[1] - rows[0], float(biases[1] - biases[0])
        norm = float(difference.norm())
        if not np.isfinite(norm) or norm == 0:
            raise UserError(f"layer {layer}: the two classes cannot be told apart; check labels")
        probes.append(
            Probe(
                direction=rows[1].clone() if direction == "paper" else difference / norm,
                classifier=difference / norm,
                bias=offset / norm,
                layer=layer,
                estimator=estimator,
                behaviour=behaviour,
                pooling=pooling,
                start=solution.start,
            )
        )
    _warn_of_polarity(probes, states, y)
    return probes


class Probes(Mapping[int, Probe]):
    """One probe a layer, by the layer's number; `probes[-1]` is the last layer's."""

    def __init__(self, probes: Sequence[Probe]):
        self._by_layer = {probe.layer: probe for probe in probes}

    def __getitem__(self, layer: int) -> Probe:
        """UserError for a layer that has no probe."""
        number = layer if layer >= 0 else max(self._by_layer) + 1 + layer
        if number not in self._by_layer:
            raise UserError(
                f"there is no probe of layer {layer}; there are {', '.join(map(str, self))}"
            )
        return self._by_layer[number]

    def __contains__(self, layer: object) -> bool:
        return layer in self._by_layer

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._by_layer))

    def __len__(self) -> int:
        return len(self._by_layer)


def fit_probes(
    states: Tensor, labels: Sequence[int] | Tensor, *, estimator: str = "lda", **options: Any
) -> Probes:
    """`fit`, with its further options: one probe a layer, by layer number.

    `states` is (texts, layers, width) as `pooled_states` gives it; label 1 has the behaviour.
    """
    return Probes(fit(states, labels, estimator=estimator, **options))


def fit_all(
    states: Tensor,
    labels: Sequence[int] | Tensor,
    estimators: Sequence[str],
    *,
    direction: Direction = "difference",
    **options: Any,
) -> list[Probe]:
    """`fit`, with its further options, by each of the estimators.

    `direction` is for the one that knows it, the softmax.
    """
    found = []
    for estimator in estimators:
        kind: Direction = direction if estimator == "softmax" else "difference"
        found += fit(states, labels, estimator=estimator, direction=kind, **options)
    return found


def _warn_of_polarity(probes: Sequence[Probe], states: Tensor, y: Tensor) -> None:
    """Classes that hardly differ may leave a softmax probe pointing where its start pointed."""
    wrong = [
        probe.name
        for index, probe in enumerate(probes)
        if measure(probe, states[:, index], y)["auc"] < 0.5
    ]
    if wrong:
        warnings.warn(
            f"{', '.join(wrong)} point away from the behaviour on the very texts they were fitted "
            "on; give more texts or another estimator",
            stacklevel=3,
        )


def measure(probe: Probe, states: Tensor, labels: Sequence[int] | Tensor) -> dict[str, float]:
    """Accuracy at the probe's own threshold, ROC AUC, and n, on states (texts, width)."""
    y = checked_labels(labels, len(states)).numpy()
    scores = probe.score(states).numpy()
    return {
        "accuracy": float(((scores > 0) == (y == 1)).mean()),
        "auc": float(roc_auc_score(y, scores)),
        "n": len(y),
    }


def separation(
    probe: Probe, states: Tensor, labels: Sequence[int] | Tensor, bins: int = 40
) -> dict[str, Any]:
    """How both classes' scores lie apart on states (texts, width): histograms and accuracy."""
    y = checked_labels(labels, len(states)).numpy()
    scores = probe.score(states).numpy()
    edges = np.histogram_bin_edges(scores, bins)
    present, absent = (np.histogram(scores[y == label], edges)[0] for label in (1, 0))
    counts = {"edges": edges, "present": present, "absent": absent}
    return {"scores": counts, "accuracy": float(((scores > 0) == (y == 1)).mean())}


def agreement(probes: Sequence[Probe], layer: int) -> dict[str, Any]:
    """Cosines between the directions of one layer's estimators: names and a square of numbers."""
    chosen = [probe for probe in probes if probe.layer == layer]
    units = torch.stack([probe.direction / probe.direction.norm() for probe in chosen])
    names, cosines = [probe.estimator for probe in chosen], (units @ units.t()).tolist()
    return {"layer": layer, "estimators": names, "cosines": cosines}


def checked_labels(labels: Sequence[int] | Tensor, count: int) -> Tensor:
    """Labels as (count,) int64. UserError where they are not 0 and 1, both of them, one a text."""
    try:
        given = torch.as_tensor(labels).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError("labels are 0 and 1, one a text; convert them first") from error
    if len(given) != count:
        raise UserError(f"there are {count} texts but {len(given)} labels; give one label a text")
    found = sorted(set(given.tolist()))  # before rounding: 0.7 is no label
    if found != [0, 1]:
        raise UserError(
            f"a probe needs texts with the behaviour (label 1) and without (label 0); "
            f"the labels found are {found[:5] or 'none'}"
        )
    return given.long()


def save(path: Path | str, probes: Sequence[Probe]) -> None:
    """Write probes as one safetensors file; what is no tensor goes into its header."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    if len({probe.name for probe in probes}) != len(probes):
        raise UserError(f"two probes have one name in {path}; keep one an estimator and layer")
    for probe in probes:
        about = {part.name: getattr(probe, part.name) for part in fields(probe)}
        for vector in ("direction", "classifier"):
            tensors[f"{probe.name}.{vector}"] = about.pop(vector)
        header[probe.name] = files.dumps(about)
    files.write_tensors(path, tensors, header)


def load(path: Path | str) -> dict[str, Probe]:
    """Read the probes of a file, by name."""
    tensors = files.read_tensors(path)
    probes = {}
    for name, about in sorted(files.read_metadata(path).items()):  # a header keeps no order
        try:
            probe = Probe(
                direction=tensors[f"{name}.direction"],
                classifier=tensors[f"{name}.classifier"],
                **files.loads(about, f"{path}, {name}"),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} holds no whole probe {name}; train it again") from error
        if fault := probe_fault(probe):
            raise UserError(f"{path}: probe {name}: {fault}; train it again")
        probes[name] = probe
    return probes


def import_authors(path: Path | str, *, layer: int, direction: Direction = "paper") -> Probe:
    """Read a probe as the paper's authors publish it: `mlp.weight` (2, width) and `mlp.bias` (2,).

    The second row is the undesired class. Nothing but tensors is unpickled. UserError where the
    file is not of that form.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = loaded["mlp.weight"].float(), loaded["mlp.bias"].float()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except Exception as error:
        raise UserError(
            f"{path} is not a probe in the authors' form: tensors mlp.weight and mlp.bias"
        ) from error
    if weight.dim() != 2 or len(weight) != 2 or bias.shape != (2,):
        raise UserError(f"{path}: mlp.weight has shape {tuple(weight.shape)}, expected (2, width)")
    difference = weight[1] - weight[0]
    norm = float(difference.norm())
    if not np.isfinite(norm) or norm == 0:
        raise UserError(f"{path}: its two rows are equal or not finite; fetch it again")
    return Probe(
        direction=weight[1] if direction == "paper" else difference / norm,
        classifier=difference / norm,
        bias=float(bias[1] - bias[0]) / norm,
        layer=layer,
        estimator="softmax",
        behaviour="toxicity",
    )

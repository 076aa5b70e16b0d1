"""SASA, self-disciplined autoregressive sampling (Ko 2024, ICLR 2025).

A linear classifier of the model's own last hidden state (LDA) gives each candidate next token the
margin of the text that it would make; candidates are preferred by beta times the softmax of the
margins, or by beta times the margin itself (the KL-regularised closed form). Every candidate's
state comes exactly from one more pass over the cache: all candidates of a text side by side, each
seeing the text and itself.

Whitening without shrinkage follows the directions of least variance and has next to no effect;
`shrinkage=0` is the published form.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import decoding
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.errors import UserError
from surgery_lib.models import activations

SHRINKAGE = 0.1
SMALLEST_EIGENVALUE = 1e-6
# Candidate tokens that one pass continues, over all texts of a batch.
BRANCHES = 2048


def discriminant(states: Tensor, labels: Any, shrinkage: float) -> tuple[Tensor, Tensor]:
    """LDA's direction away from the behaviour (width,), norm 1, and the midpoint (width,).

    The within-class covariance S is pooled; shrinkage mixes in tr(S)/width times the identity.
    """
    y = torch.as_tensor(labels)
    exact = states.double()
    means = torch.stack([exact[y == label].mean(0) for label in (1, 0)])
    centred = exact - means[1 - y]
    covariance = centred.t() @ centred / len(y)
    width = covariance.shape[0]
    scale = covariance.trace() / width
    covariance = (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(width).double()
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > SMALLEST_EIGENVALUE
    half = (means[1] - means[0]) / 2
    direction = vectors[:, kept] @ ((vectors[:, kept].t() @ half) / values[kept])
    return (direction / direction.norm()).float(), means.mean(0).float()


def shift(margins: Tensor, beta: float, mode: str) -> Tensor:
    """What is added to the candidates' logits: (..., candidates)."""
    if mode not in ("softmax", "margin"):
        raise UserError(f"mode {mode!r} is unknown; choose softmax or margin")
    return beta * (margins.softmax(-1) if mode == "softmax" else margins)


@dataclass(frozen=True, eq=False)
class FittedSasa(decoding.Steered, Read):
    """`direction` (width,), away from the behaviour; `midpoint` (width,)."""

    direction: Tensor
    midpoint: Tensor
    cached: ClassVar[bool] = True

    def change(
        self, model: PreTrainedModel, strength: float, candidates: int = 10, mode: str = "margin"
    ) -> decoding.Rule:
        """Prefer, among the `candidates` most likely tokens, those that lead away."""

        def change(call: decoding.Call) -> Tensor:
            values, chosen = call.logits.float().topk(min(candidates, call.logits.shape[-1]))
            margins = self.margins(candidate_states(model, call, chosen))
            changed = call.logits.float().scatter(
                -1, chosen, values + shift(margins, strength, mode)
            )
            among = torch.zeros_like(changed, dtype=torch.bool).scatter(-1, chosen, True)
            return decoding.shared(call.logits, changed, among)

        return change

    def margins(self, states: Tensor) -> Tensor:
        """Signed distance of states (..., width) from the boundary, positive without behaviour."""
        return (states.float() - self.midpoint.to(states.device)) @ self.direction.to(states.device)

    def cost(self, *, candidates: int = 10, **_: Any) -> Cost:
        """One token more for each candidate; the weights stay."""
        return self.price(
            2 * len(self.direction), extra_forwards=float(candidates), ordinary_checkpoint=False
        )


class Sasa(Method[FittedSasa], name="sasa", kind="decoding"):
    """Self-disciplined sampling with a shrunk linear discriminant."""

    # Beta, and how margins become a preference.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(1.0, high=300.0, low=0.02),
        "candidates": SearchRange(10, choices=(5, 10, 20)),
        "mode": SearchRange("margin", choices=("margin", "softmax")),
    }

    def learn(self, lesson: Lesson, shrinkage: float = SHRINKAGE) -> FittedSasa:
        """The discriminant of the last hidden state at the last token."""
        last = [activations.n_layers(lesson.model) - 1]
        states = lesson.states("last", layers=last)[:, 0]
        direction, midpoint = discriminant(states, lesson.data.labels, shrinkage)
        return FittedSasa(direction=direction, midpoint=midpoint, **lesson.read())


@torch.no_grad()
def candidate_states(model: PreTrainedModel, call: decoding.Call, chosen: Tensor) -> Tensor:
    """Last hidden state of each text followed by each candidate, exactly.

    `chosen` (texts, positions, candidates) continue the last `positions` tokens of the call;
    the result is (texts, positions, candidates, width). The cache is left as it was.
    """
    texts, positions, count = chosen.shape
    total = call.past + call.ids.shape[1]
    _check_cache(call.cache, total)
    device = call.ids.device
    ends = torch.arange(total - positions, total, device=device)  # the token that each follows
    if call.positions is None:
        places = ends.expand(texts, -1)
    else:
        places = call.positions.expand(texts, -1)[:, -positions:]
    step = max(1, BRANCHES // (texts * count))
    parts = []
    for start in range(0, positions, step):
        part = slice(start, start + step)
        own = chosen[:, part].flatten(1)
        width = own.shape[1]
        after = ends[part].repeat_interleave(count)
        sees = torch.arange(total, device=device) <= after[:, None]
        sees = sees.expand(texts, -1, -1)
        if call.mask is not None:
            sees = sees & call.mask[:, None, :].bool()
        itself = torch.eye(width, dtype=torch.bool, device=device).expand(texts, -1, -1)
        with _kept(call.cache):
            states = model.base_model(
                input_ids=own,
                attention_mask=_additive(torch.cat([sees, itself], dim=-1), model.dtype),
                position_ids=places[:, part].repeat_interleave(count, dim=1) + 1,
                past_key_values=call.cache,
                use_cache=True,
            ).last_hidden_state
        parts.append(states.unflatten(1, (-1, count)))
    return torch.cat(parts, dim=1)


def _additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    floor = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return floor.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


@contextmanager
def _kept(cache: Any) -> Iterator[None]:
    # Growing a dynamic cache makes new tensors, so the old ones are a copy that costs nothing.
    names = ("keys", "values", "cumulative_length")
    kept = [
        {name: getattr(layer, name) for name in names if hasattr(layer, name)}
        for layer in cache.layers
    ]
    try:
        yield
    finally:
        for layer, values in zip(cache.layers, kept, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)


def _check_cache(cache: Any, total: int) -> None:
    for layer in getattr(cache, "layers", ()):
        window = getattr(layer, "sliding_window", None)
        if window is not None and total + 1 > window:
            raise UserError(
                f"SASA continues {total} cached tokens, but this model's attention slides over "
                f"{window}; use shorter texts"
            )

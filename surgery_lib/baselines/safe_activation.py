"""Safe activation (Geva 2022): keep chosen value vectors switched on.

Each intermediate unit of an MLP scales one value vector (its column of the down projection) by a
coefficient, silu(g) u in a gated MLP. The units whose value vectors point most away from the
behaviour have their coefficient set to c at every position (Geva picks ten by hand, c = 3 in
GPT-2). As weights, exactly: zero those columns and add c times their sum to the bias.
Strength is the number of units, so that 0 changes nothing; c is in units of the root mean square
of the block's coefficients.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.models import activations, layout
from surgery_lib.models.tokens import real_tokens
from surgery_lib.surgery.region import cosine_scores


@dataclass(frozen=True, eq=False)
class FittedSafe(Read):
    """`directions` (layers, width), towards the behaviour; `scales` (blocks,): RMS coefficients."""

    directions: Tensor
    scales: Tensor

    @contextmanager
    def applied(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        coefficient: float = 3.0,
        depth: float = 1.0,
        baked: bool = False,
    ) -> Iterator[Any]:
        """Set the coefficients of the `strength` (rounded) safest units."""
        with ExitStack() as stack:
            if round(strength) > 0:
                direction = self.directions[tools.layer_at(model, depth)]
                for block, units in _safest(model, direction, round(strength)):
                    value = coefficient * float(self.scales[block])
                    down = tools.mlp_output(layout.blocks(model)[block])
                    stack.enter_context((_as_weights if baked else _as_hook)(down, units, value))
            yield model

    def cost(self, *, strength: float = 10.0, **_: Any) -> Cost:
        """The columns of the chosen units."""
        return self.price(round(strength) * self.directions.shape[1])


class SafeActivation(Method[FittedSafe], name="safe_activation", kind="hook"):
    """Fix the coefficients of units whose value vectors oppose the behaviour."""

    # How many units, and how far on.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(10.0, high=200.0, low=1.0),
        "coefficient": SearchRange(3.0, low=0.5, high=30.0, log=True),
        "depth": SearchRange(1.0, low=0.3, high=1.0),
    }

    def learn(self, lesson: Lesson) -> FittedSafe:
        """Mean differences at all layers, and how large coefficients are on the texts."""
        model, data = lesson.model, lesson.data
        states = lesson.states()
        blocks = layout.blocks(model)
        squares = torch.zeros(len(blocks), dtype=torch.float64)

        def visit(name: str, inputs: Tensor, lengths: Tensor, _texts: Tensor) -> None:
            states = inputs[real_tokens(lengths, inputs.shape[1])]
            squares[int(name)] += states.double().square().mean(1).sum().cpu()

        modules = {str(i): tools.mlp_output(block) for i, block in enumerate(blocks)}
        tokens = activations.read_inputs(model, lesson.tokenizer, data.texts, modules, visit)
        return FittedSafe(
            directions=tools.mean_difference(states, data.labels),
            scales=(squares / tokens).sqrt().float(),
            labels=len(data.texts),
            tokens=tokens + lesson.read()["tokens"],
        )


def _safest(model: nn.Module, direction: Tensor, count: int) -> list[tuple[int, Tensor]]:
    """The units whose value vectors are most opposed: block number and unit numbers."""
    scores = cosine_scores(model, direction, "down")
    chosen = scores.argsort(stable=True)[:count].sort().values
    sizes = [len(rows.weight) for rows in layout.weight_rows(model, "down")]
    return [(block, units) for block, units, _ in layout.split_by_matrix(sizes, chosen)]


@contextmanager
def _as_hook(down: nn.Module, units: Tensor, value: float) -> Iterator[None]:
    def change(coefficients: Tensor) -> Tensor:
        return coefficients.index_fill(-1, units.to(coefficients.device), value)

    with tools.hooked([tools.on_input(down, change)]):
        yield


@contextmanager
def _as_weights(down: nn.Module, units: Tensor, value: float) -> Iterator[None]:
    weight = tools.writes(down)
    units = units.to(weight.device)
    shift = value * weight[:, units].float().sum(1)
    with tools.restored([weight]), tools.biased(down, shift):
        weight[:, units] = 0
        yield

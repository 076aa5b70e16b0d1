"""CAA / ActAdd steering: the mean difference of two groups of texts, taken off the residual stream.

The vector is the difference of the mean states at one layer; it is added at every position of the
input of the block there (nrimsky/CAA adds it after the instruction). Where the block before it ends
in one down projection, a bias there is exactly the same, and an ordinary checkpoint.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Kind, Knob, Labelled, count_tokens, strength_knob
from surgery_lib.models import activations, layout


@dataclass(frozen=True, eq=False)
class FittedCaa:
    """`vectors` (layers, width): raw mean differences, towards the behaviour."""

    vectors: Tensor
    labels: int
    tokens: int

    @contextmanager
    def applied(
        self, model: Any, strength: float, *, depth: float = 0.6, baked: bool = False
    ) -> Iterator[Any]:
        """Take `strength` times the vector off the input of the block at `depth`."""
        index = tools.block_at(model, depth)
        shift = -strength * self.vectors[index]
        if strength == 0:
            yield model
        elif baked:
            with tools.biased(tools.mlp_output(layout.blocks(model)[index - 1]), shift):
                yield model
        else:
            with tools.hooked([tools.on_input(layout.blocks(model)[index], _adder(shift))]):
                yield model

    def cost(self, **_: Any) -> Cost:
        """One vector, as a bias."""
        return Cost(
            labels=self.labels, forward_tokens=self.tokens, parameters=self.vectors.shape[1]
        )


@dataclass(frozen=True)
class Caa:
    """Contrastive activation addition. `pooling` "last" reads the last token, as CAA does."""

    name: str = "caa"
    kind: Kind = "hook"

    @property
    def knobs(self) -> Mapping[str, Knob]:
        """Strength in units of the mean difference itself."""
        return {"strength": strength_knob(1.0, high=5.0), "depth": tools.DEPTH}

    def fit(
        self,
        model: nn.Module,
        tokenizer: Any,
        data: Labelled,
        *,
        seed: int = 0,
        pooling: Literal["mean", "last"] = "mean",
    ) -> FittedCaa:
        """The mean differences at all layers, from one forward pass over the texts."""
        states = activations.pooled_states(
            model, tokenizer, data.texts, pooling=pooling, progress=False
        )
        return FittedCaa(
            vectors=tools.mean_difference(states, data.labels),
            labels=len(data.texts),
            tokens=count_tokens(tokenizer, data.texts),
        )


def _adder(shift: Tensor) -> Any:
    return lambda hidden: hidden + shift.to(hidden)

"""CAA / ActAdd steering: the mean difference of two groups of texts, taken off the residual stream.

The vector is the difference of the mean states at one layer; it is added at every position of the
input of the block there (nrimsky/CAA adds it after the instruction). Where the block before it ends
in one down projection, a bias there is exactly the same, and an ordinary checkpoint.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.models import activations, layout


@dataclass(frozen=True, eq=False)
class FittedCaa(Read):
    """`vectors` (layers, width): raw mean differences, towards the behaviour."""

    vectors: Tensor

    @contextmanager
    def applied(
        self, model: PreTrainedModel, strength: float, *, depth: float = 0.6, baked: bool = False
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
            with tools.hooked([tools.on_input(layout.blocks(model)[index], tools.adder(shift))]):
                yield model

    def cost(self, **_: Any) -> Cost:
        """One vector, as a bias."""
        return self.price(self.vectors.shape[1])


class Caa(Method[FittedCaa], name="caa", kind="hook"):
    """Contrastive activation addition. `pooling` "last" reads the last token, as CAA does.

    By default all tokens after the first count, whose state is many times as long on some models.
    """

    # Strength in units of the mean difference itself.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(1.0, high=5.0),
        "depth": tools.DEPTH,
    }

    def learn(self, lesson: Lesson, pooling: activations.Pooling = "after_first") -> FittedCaa:
        """The mean differences at all layers, from one forward pass over the texts."""
        vectors = tools.mean_difference(lesson.states(pooling), lesson.data.labels)
        return FittedCaa(vectors, **lesson.read())

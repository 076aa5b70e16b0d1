"""CAA / ActAdd steering: the mean difference of two groups of texts, taken off the residual stream.

The vector is the difference of the mean states at one layer; it is added at every position of the
input of the block there (nrimsky/CAA adds it after the instruction). Where the block before it ends
in one down projection, a bias there is exactly the same, and an ordinary checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import own, tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.models import activations, layout
from surgery_lib.surgery import covariance


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


class FromAnswers(Caa, name="caa_own", kind="hook"):
    """The same vector between the model's own answers, those that score most and those least.

    Nearer to CAA as published, whose pairs are answers to one question.
    """

    def learn(
        self,
        lesson: Lesson,
        pooling: activations.Pooling = "after_first",
        score: own.Score | None = None,
    ) -> FittedCaa:
        """The mean differences at blocks' inputs, over all tokens from each prompt's last one on.

        Without training prompts those of the labelled texts, pooled as `pooling` says.
        """
        if not lesson.data.prompts:
            return super().learn(lesson, pooling)
        written = own.write(lesson, score=score)
        means, forward = [], written.forward
        for which in own.told_apart(written):
            rows, starts = own.rows(written, which)
            means.append(_means(lesson, rows, starts))
            forward += sum(map(len, rows))
        return FittedCaa(
            means[0] - means[1],
            labels=written.labels + written.asked,
            tokens=forward,
            prompts=written.asked,
            samples=len(written.tails),
        )


def _means(lesson: Lesson, rows: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
    """Mean input of every block over the rows' tokens from `starts` on: (blocks, width)."""
    blocks = {str(n): block for n, block in enumerate(layout.blocks(lesson.model))}
    width = layout.hidden_width(lesson.model)
    sums = {name: torch.zeros(width, dtype=torch.float64) for name in blocks}
    first = torch.tensor(starts)

    def visit(name: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
        x = inputs[covariance.counted(inputs, lengths, first[which])]
        sums[name] += x.double().sum(0).cpu()

    activations.read_inputs(lesson.model, lesson.tokenizer, rows, blocks, visit)
    count = sum(len(ids) - start for ids, start in zip(rows, starts, strict=True))
    return (torch.stack(list(sums.values())) / count).float()

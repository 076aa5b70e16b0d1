"""LEACE (Belrose 2023), as concept scrubbing: every layer's states lose what a line can tell.

Of all affine maps that leave a state x and the label z uncorrelated, so that no linear classifier
beats a constant, the one of least E|x' - x|^2 in any norm is, for one z,

    x' = x - d (a^T (x - m)),  a = S^+ d / (d^T S^+ d),

m and S being mean and covariance of x, and d = cov(x, z): an oblique projection, orthogonal where x
is white. Scrubbing puts one on what every attention and MLP reads, each fitted behind those before
it. Every token has its text's label. Strength 1 is the published map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from surgery_lib.baselines import sequence
from surgery_lib.baselines.base import Lesson, Method, SearchRange
from surgery_lib.errors import UserError
from surgery_lib.models import layout

# Variances below this share of the largest are rounding of states in float32.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Eraser:
    """x - d (a^T (x - m)): `mean` m, `left` d and `right` a, each (width,), with a^T d = 1."""

    mean: Tensor
    left: Tensor
    right: Tensor

    def __call__(self, states: Tensor, strength: float) -> Tensor:
        """States (..., width) less a share `strength` of their part along d."""
        mean, left, right = (one.to(states.device) for one in (self.mean, self.left, self.right))
        exact = states.float()
        along = (exact - mean) @ right
        return (exact - strength * along[..., None] * left).to(states.dtype)


class Moments:
    """Moments of tokens' states and of their labels, summed in float64."""

    def __init__(self, labels: Tensor, width: int) -> None:
        self.labels = labels
        self.count = torch.zeros(2, dtype=torch.float64)
        self.sums = torch.zeros(2, width, dtype=torch.float64)
        self.second = torch.zeros(width, width, dtype=torch.float64)

    def add(self, states: Tensor, real: Tensor, texts: Tensor) -> None:
        """Take up a batch, as `sequence.Sample` says."""
        x = states[real].float().cpu().double()
        z = self.labels[texts][:, None].expand(real.shape)[real.cpu()]
        for label in (0, 1):
            self.count[label] += (z == label).sum()
            self.sums[label] += x[z == label].sum(0)
        self.second += x.t() @ x

    def fit(self) -> Eraser:
        """The eraser. UserError where there are no more tokens than dimensions."""
        total, width = int(self.count.sum()), len(self.second)
        if total <= width:
            raise UserError(
                f"leace: {total} tokens do not give a covariance of {width} dimensions; give more "
                "or longer texts"
            )
        mean = self.sums.sum(0) / total
        covariance = self.second / total - torch.outer(mean, mean)
        shares = self.count / total
        apart = self.sums[1] / self.count[1] - self.sums[0] / self.count[0]
        return eraser(mean, covariance, shares.prod() * apart)


class Leace(Method[sequence.FittedMaps], name="leace", kind="hook"):
    """LEACE at every layer."""

    # Strength 1 is the published method.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.02, high=1.0, bounded=True)
    }

    def learn(self, lesson: Lesson) -> sequence.FittedMaps:
        """Erasers in the order of the layers. UserError for fewer tokens than dimensions."""
        width = layout.hidden_width(lesson.model)
        labels = torch.as_tensor(lesson.data.labels)
        norms = sequence.norms_before(lesson.model)
        maps, tokens = sequence.fit_in_order(lesson, norms, lambda: Moments(labels, width))
        return sequence.FittedMaps(
            maps=maps,
            places=sequence.norms_before,
            parameters=3 * width * len(maps),
            labels=len(labels),
            tokens=tokens,
        )


def eraser(mean: Tensor, covariance: Tensor, apart: Tensor) -> Eraser:
    """From m (width,), S (width, width) and d = cov(x, z) (width,), whose length does not count.

    Where d is nothing there is nothing to erase.
    """
    inverse = torch.linalg.pinv(covariance.double(), hermitian=True, rtol=ROUNDING)
    right = inverse @ apart.double()
    size = (right @ apart.double()).clamp_min(torch.finfo(torch.float64).tiny)
    # Both of moderate length in float32, whatever the scale of d.
    unit = apart.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    left, right = apart.double() / unit, right * unit / size
    return Eraser(mean.float(), left.float(), right.float())

"""Linear-AcT (Rodriguez 2025): activations transported from behaviour to its absence, one by one.

Every dimension of a norm's output is on its own. Its means over the texts with the behaviour, a,
and over as many without, b, are matched in sorted order, which is optimal transport between two
samples of a line; the affine map nearest to that in least squares is

    T(x) = omega x + beta,  omega = sum a~ b~ / sum a~^2,  beta = mean b - omega mean a,

a~ and b~ being sorted and centred. The state becomes (1 - strength) x + strength T(x), so that
strength 1 is full transport. As in the authors' settings, what lies outside of the sample a stays
as it is, and norms are fitted in the order of the layers, each behind those before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from surgery_lib.baselines import sequence
from surgery_lib.baselines.base import Lesson, Method, SearchRange
from surgery_lib.errors import UserError
from surgery_lib.models import layout

# Fewer of either label have no spread to match.
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Transport:
    """omega x + beta for `low` <= x <= `high`, all (width,)."""

    omega: Tensor
    beta: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, states: Tensor, strength: float) -> Tensor:
        """States (..., width), those within the support moved a share `strength` of the way."""
        at = states.device
        exact = states.float()
        moved = exact.lerp(exact * self.omega.to(at) + self.beta.to(at), strength)
        within = (exact >= self.low.to(at)) & (exact <= self.high.to(at))
        return moved.where(within, exact).to(states.dtype)


class Means:
    """Every text's mean state over its tokens."""

    def __init__(self, labels: Tensor, width: int, support: bool) -> None:
        self.labels = labels
        self.support = support
        self.found = torch.empty(len(labels), width)

    def add(self, states: Tensor, real: Tensor, texts: Tensor) -> None:
        """Take up a batch, as `sequence.Sample` says."""
        weights = (real / real.sum(1, keepdim=True)).float()
        self.found[texts] = torch.bmm(weights[:, None], states.float())[:, 0].cpu()

    def fit(self) -> Transport:
        """The map from texts with the behaviour to those without."""
        return transport(self.found[self.labels == 1], self.found[self.labels == 0], self.support)


class LinearAct(Method[sequence.FittedMaps], name="linear_act", kind="hook"):
    """Linear activation transport of all norms."""

    # Strength 1 is full transport.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": SearchRange(1.0, low=0.02, high=1.0, bounded=True)
    }

    def learn(self, lesson: Lesson, support: bool = True) -> sequence.FittedMaps:
        """Maps in the order of the layers; without `support` they hold everywhere.

        UserError for fewer than two texts of a label.
        """
        labels = torch.as_tensor(lesson.data.labels)
        least = int(labels.bincount(minlength=2).min())
        if least < FEWEST:
            raise UserError(
                f"linear_act: {least} text of a label has no spread to match; give at least "
                f"{FEWEST} with and {FEWEST} without the behaviour"
            )
        width = layout.hidden_width(lesson.model)
        norms = sequence.norms_behind(lesson.model)
        sample = partial(Means, labels, width, support)
        maps, tokens = sequence.fit_in_order(lesson, norms, sample)
        return sequence.FittedMaps(
            maps=maps,
            places=sequence.norms_behind,
            parameters=(4 if support else 2) * width * len(maps),
            labels=len(labels),
            tokens=tokens,
        )


def transport(source: Tensor, target: Tensor, support: bool = True) -> Transport:
    """From samples (n, width) and (m, width); of the larger one as many as the smaller has count.

    A dimension that never varies in the source is shifted alone.
    """
    pairs = min(len(source), len(target))
    a, b = (one[:pairs].double().sort(0).values for one in (source, target))
    from_mean, to_mean = a.mean(0), b.mean(0)
    varied = a - from_mean
    square = varied.square().sum(0)
    omega = (varied * (b - to_mean)).sum(0) / square
    omega = omega.where(square > 0, 1.0)
    beta = to_mean - omega * from_mean
    low, high = a[0], a[-1]
    if not support:
        low, high = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    return Transport(omega.float(), beta.float(), low.float(), high.float())

"""Covariance-aware surgery as a method: its statistics are read once, its knobs turned after.

Behaviour tokens are those of the labelled texts, or of the model's own completions, told apart by
the guide; spared ones those of texts without the behaviour, of benign prompts, and of the model's
own completions that show it least.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import (
    Cost,
    Lesson,
    Method,
    Read,
    SearchRange,
    count_tokens,
    strength_range,
)
from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout
from surgery_lib.surgery import Surgery, covariance, probe, region

# Depths of the hidden states whose LDA direction the edit may write against.
SHALLOWEST, DEEPEST = 0.5, 0.9
# Of the model's own completions: this share, most by the guide's score, is the behaviour; as much
# again as half of them, least by it, is spared.
MOST, LEAST = 0.25, 0.5
# What a read of the model's own completions takes of prompt and completion together.
OWN_TOKENS = 128

Guide = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True, eq=False)
class FittedCovariance(Read):
    """Statistics of every block, and write directions: layer -> (width,)."""

    blocks: Sequence[covariance.BlockStatistics]
    writes: Mapping[int, Tensor]
    row_norm: float
    total: int

    @contextmanager
    def applied(self, model: Any, strength: float, **knobs: Any) -> Iterator[Any]:
        """The model operated on, as `plan` says."""
        with self.plan(model, strength, **knobs).applied(model):
            yield model

    def plan(
        self,
        model: nn.Module,
        strength: float,
        *,
        k: float = 0.01,
        ridge: float = 0.1,
        depth: float = 0.8,
        read: covariance.Read = "raw",
    ) -> Surgery:
        """The surgery that these settings mean, which can be saved as a patch."""
        layer = tools.layer_at(model, depth)
        if layer not in self.writes:
            raise UserError(f"depth {depth} was not fitted; choose {SHALLOWEST} to {DEEPEST}")
        return covariance.plan(
            model,
            self.blocks,
            self.writes[layer],
            strength=strength,
            k=k,
            ridge=ridge,
            read=read,
            row_norm=self.row_norm,
            about={"layer": layer, "k": k, "ridge": ridge, "read": read, "rule": "covariance"},
        )

    def cost(self, *, k: float = 0.01, **_: Any) -> Cost:
        """The selected rows, each in every column."""
        rows = region.row_count(k, self.total)
        return self.price(rows * len(self.blocks[0].mean))


class Covariance(Method[FittedCovariance], name="surgery_covariance", kind="weights"):
    """Covariance-aware surgery."""

    # Strength in mean row norms; the ridge in units of the spared moment's mean diagonal.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(2.0, high=16.0, low=0.1),
        "k": SearchRange(0.01, low=0.003, high=0.03, log=True),
        "ridge": SearchRange(0.1, low=0.01, high=4.0, log=True),
        "depth": SearchRange(0.8, low=SHALLOWEST, high=DEEPEST),
        "read": SearchRange("raw", choices=("raw", "difference")),
    }

    def learn(
        self,
        lesson: Lesson,
        guide: Guide | None = None,
        samples: int = 4,
        new_tokens: int = 20,
    ) -> FittedCovariance:
        """Directions from one pass over the labelled texts, statistics from one more.

        With a `guide` (completions -> scores, higher is more of the behaviour) the behaviour's
        tokens are those of the model's own completions of `data.prompts`.

        Raises:
            UserError: A guide without prompts, or a mixture of experts.
        """
        model, tokenizer, data = lesson.model, lesson.tokenizer, lesson.data
        layers = range(tools.layer_at(model, SHALLOWEST), tools.layer_at(model, DEEPEST) + 1)
        probes = probe.fit(
            lesson.states(layers=layers),
            data.labels,
            estimator="lda",
            direction="difference",
            seed=lesson.seed,
        )
        behaviour, spared = data.of(1), [*data.of(0), *data.benign]
        starts, spared_starts = [1] * len(behaviour), [1] * len(spared)
        limit = activations.MAX_TOKENS
        if guide is not None:
            most, least = _own(lesson, guide, samples, new_tokens)
            behaviour, starts = [text for text, _ in most], [start for _, start in most]
            spared += [text for text, _ in least]
            spared_starts += [start for _, start in least]
            limit = OWN_TOKENS
        blocks = covariance.statistics(
            model,
            tokenizer,
            behaviour,
            spared,
            behaviour_starts=starts,
            spared_starts=spared_starts,
            max_tokens=limit,
        )
        read = [*data.texts, *behaviour, *spared]
        return FittedCovariance(
            blocks=blocks,
            writes={layer: one.direction for layer, one in zip(layers, probes, strict=True)},
            row_norm=region.mean_row_norm(model),
            labels=len(data.texts) + len(data.benign),
            benign=len(data.benign),
            tokens=count_tokens(tokenizer, read, limit),
            total=layout.total_rows(model),
        )


def _own(
    lesson: Lesson, guide: Guide, samples: int, new_tokens: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The model's own completions, most and least of the behaviour: (text, first token) each.

    A text is prompt and completion; the first token is that of the completion.
    """
    tokenizer, data = lesson.tokenizer, lesson.data
    if not data.prompts:
        raise UserError("own completions need training prompts; give some, or leave the guide out")
    room = OWN_TOKENS - new_tokens
    prompts = [
        prompt for prompt in data.prompts if count_tokens(tokenizer, [prompt], OWN_TOKENS) < room
    ]
    if not prompts:
        raise UserError(f"every training prompt is longer than {room} tokens; give shorter ones")
    written = lesson.completions(prompts, samples, max_new_tokens=new_tokens)
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    found = [
        (prompt + text, length, text)
        for prompt, length, texts in zip(prompts, lengths, written, strict=True)
        for text in texts
        if len(tokenizer([prompt + text])["input_ids"][0]) > length
    ]
    scores = list(guide([text for *_, text in found]))
    order = sorted(range(len(found)), key=lambda i: -float(scores[i]))
    most = order[: max(1, round(MOST * len(order)))]
    least = order[len(order) - round(LEAST * len(order)) :]
    return [found[i][:2] for i in most], [found[i][:2] for i in least]

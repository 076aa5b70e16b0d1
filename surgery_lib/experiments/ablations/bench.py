"""Variants of one chosen edit: each is applied, measured, undone and kept at once."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.selection.sweep import Ledger
from surgery_lib.surgery import Surgery, probe, region
from surgery_lib.surgery.edit import normalised

Edit = Callable[[], AbstractContextManager[Any]]

CHOSEN = "chosen"
# Where damage is matched: the multiples first looked between, how often the interval is halved, the
# logarithm of a multiple at which the search ends, and the rise of perplexity below which one edit
# is as good as another.
SPAN = 8.0
HALVINGS = 6
END = math.log(1e6)
LEAST_RISE = 0.01
BEYOND = 1e6  # stands for a perplexity that is no number any more


@dataclass(frozen=True)
class Variant:
    """One way of editing, in answer to one question.

    `edit` gives a context that the model is edited in. `x` is its place on a curve, `draw` which of
    several draws it is where there is chance.
    """

    question: str
    name: str
    edit: Edit
    x: float | None = None
    draw: int | None = None

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return f"{self.question} | {self.name} | {self.x} | {self.draw}"


@dataclass(frozen=True)
class Measurement:
    """What was measured of a variant; `refused` says why an architecture does not allow it.

    `flags` (prompts,) are 1 where the behaviour shows; `texts` are continuations of the first
    prompts.
    """

    question: str
    name: str
    x: float | None
    draw: int | None
    refused: str = ""
    flags: Sequence[int] = ()
    perplexity_rise: float = 0.0
    context_kl: float | None = None
    distinct: float | None = None
    texts: Sequence[str] = ()


@dataclass
class Bench:
    """The chosen edit on its model, with what its variants are made of.

    `directions` are unit vectors (width,) by name, or (blocks, width) with one for every block
    where the edit has that; `scores` the scores of all rows by (rule, name). `chosen` is the probe
    that the edit moves along or, with a direction for every block, what it writes against.
    `states` (texts, layers, width) and `labels` are by split, for `layers`, whose probes are of
    `estimator`. `starts` has, by layer, the cosines of each trained draw's rows with their random
    start.
    """

    model: PreTrainedModel
    tokenizer: Any
    data: BehaviourData
    surgery: Surgery
    chosen: probe.Probe
    estimator: str
    meter: Evaluator
    ledger: Ledger
    draws: int
    layers: list[int]
    states: Mapping[str, Tensor]
    labels: Mapping[str, Sequence[int]]
    relative: bool
    directions: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    starts: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """What the chosen edit ranks rows by."""
        return str(self.surgery.about["rule"])

    @property
    def step(self) -> float:
        """How far the chosen edit moves a row, in the weights' own units."""
        return float(self.surgery.coefficients[0] * self.surgery.direction.norm(dim=-1).mean())

    @property
    def blockwise(self) -> bool:
        """Whether the chosen edit has a direction for every block."""
        return self.surgery.direction.dim() == 2

    @property
    def scorer(self) -> str:
        """The scorer that rates are by."""
        return self.meter.scorers[0].name

    def rows(
        self,
        name: str = CHOSEN,
        *,
        k: int | float | None = None,
        ranking: str | None = None,
        select: region.Select = "opposed",
        seed: int = 0,
        among: Tensor | None = None,
    ) -> Tensor:
        """Rows selected along a direction; as many, and by the same ranking, as chosen."""
        key = (ranking or self.rule, name)
        if key not in self.scores:
            raise UserError(f"rows cannot be ranked by {key[0]} along {name} in this architecture")
        count = len(self.surgery.rows) if k is None else k
        return region.select(self.scores[key], count, select=select, seed=seed, among=among)

    def edit(
        self,
        rows: Tensor,
        direction: Tensor,
        times: float = 1.0,
        *,
        matrix: str | None = None,
    ) -> AbstractContextManager[Any]:
        """The model with rows moved along a direction, by a multiple of the chosen step.

        In another matrix the step keeps its length, or, where strength is in mean row norms, its
        length in that matrix's norms.
        """
        matrix = matrix or self.surgery.matrix
        step = self.step * times
        if matrix != self.surgery.matrix and self.relative:
            own, other = (
                region.mean_row_norm(self.model, m) for m in (self.surgery.matrix, matrix)
            )
            step *= other / own
        along = normalised(direction)
        surgery = Surgery.build(self.model, rows, along, step, unit="absolute", matrix=matrix)
        return surgery.applied(self.model)

    def measure(self, variants: Iterable[Variant], *, texts: int = 0) -> list[Measurement]:
        """Apply, measure and undo each variant; what an architecture refuses is kept as `refused`.

        `texts` continuations of the first prompts are kept in each row.
        """
        found = []
        wanted = list(variants)
        for variant in tqdm(wanted, desc=wanted[0].question if wanted else ""):
            held = self.ledger.get(variant.key)
            if held is None:
                held = self.ledger.put(variant.key, asdict(self._measured(variant, texts)))
            found.append(Measurement(**held))
        return found

    def _measured(self, variant: Variant, texts: int) -> Measurement:
        about = (variant.question, variant.name, variant.x, variant.draw)
        try:
            with variant.edit():
                reading = self.meter.read(
                    self.model, parts=("context", "perplexity"), intervals=False
                )
        except UserError as error:
            return Measurement(*about, refused=str(error))
        context = reading.damage.context_kl
        return Measurement(
            *about,
            flags=reading.flags[self.scorer].astype(int).tolist(),
            perplexity_rise=_number(reading.perplexity_rise),
            context_kl=context.value if context is not None else None,
            distinct=reading.distinct["distinct_2"],
            texts=[row["text"] for row in reading.rows[:texts]],
        )

    def matched(self, name: str, edit: Callable[[float], AbstractContextManager[Any]]) -> float:
        """The multiple at which `edit` does as much damage as the chosen edit.

        Damage is the divergence inside contexts that trigger the behaviour, or the rise of clean
        perplexity where the behaviour has no contexts. Found by halving on a logarithmic scale, an
        eighth to eight at first, which goes on either way until the damage lies within, as the
        unit of a direction may do far more or less than the chosen one's; at an end it is that.
        """
        held = self.ledger.get(f"matched | {name}")
        if held is None:
            target = self._damage(self.edit(self.surgery.rows, self.directions[CHOSEN]))
            span = math.log(SPAN)
            low, high = -span, span
            while high < END and self._damage(edit(math.exp(high))) <= target:
                low, high = high, high + span
            while -END < low < 0 and self._damage(edit(math.exp(low))) > target:
                low, high = low - span, low
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                too_much = self._damage(edit(math.exp(middle))) > target
                low, high = (low, middle) if too_much else (middle, high)
            held = self.ledger.put(f"matched | {name}", {"multiple": math.exp((low + high) / 2)})
        return float(held["multiple"])

    def _damage(self, edited: AbstractContextManager[Any]) -> float:
        part = "context" if self.meter.reference.pairs else "perplexity"
        with edited:
            damage = self.meter.reference.compare(self.model, parts=(part,), intervals=False)
        if damage.context_kl is not None:
            return _number(damage.context_kl.value)
        ratio = damage.perplexity_ratio
        return max(LEAST_RISE, _number(ratio["value"] - 1)) if ratio is not None else 0.0


def _number(value: float) -> float:
    return min(value, BEYOND) if math.isfinite(value) else BEYOND

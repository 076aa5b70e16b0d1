"""Edits tried by hand: base and edited continuations, how far apart they are, and how often.

The model is edited in place and restored after every reading, so on a small model the answer comes
at once. `experiments.panel` puts controls around it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.behaviour import Prompt
from surgery_lib.errors import UserError
from surgery_lib.evaluation import responses
from surgery_lib.evaluation.damage import first_token_kl
from surgery_lib.evaluation.statistics import Estimate, proportion
from surgery_lib.models import generation, layout
from surgery_lib.scorers.base import Scorer, threshold
from surgery_lib.surgery import Surgery, Unit, region
from surgery_lib.surgery.probe import Probe

ROW_RULES = tuple(name for name in get_args(region.Select) if name != "all")
COSINE = "cosine"  # the score that needs the weights alone, so that it is always there


@dataclass(frozen=True)
class Edit:
    """One edit: which probe, what scores the rows and which are taken, how many, how far.

    `layers` maps a block to a strength of its own; the others have `strength`.
    """

    direction: str
    score: str = COSINE
    rows: str = "opposed"
    k: int | float = 0.05
    strength: float = 1.0
    layers: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        share = f"{100 * self.k:g} %" if isinstance(self.k, float) else f"{self.k:,}"
        own = "".join(f", block {b}: {s:.1f}" for b, s in sorted(self.layers.items()))
        return (
            f"{self.direction}, {share} {self.rows} rows by {self.score}, "
            f"α = {self.strength:.1f}{own}"
        )


@dataclass(frozen=True)
class Writing:
    """How continuations are written: length, temperature (0 is greedy), draw, chat template."""

    max_new_tokens: int = 24
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """For whatever generates: a prompt that is too long is cut, and no bar is shown."""
        own = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "seed")}
        return {**own, "truncate": True, "progress": False}


@dataclass(frozen=True)
class Side:
    """One model's continuation: its tokens, the probe's score of each, the scorers' verdicts."""

    text: str
    tokens: list[str]
    scores: list[float]
    verdicts: Mapping[str, tuple[float, bool]]


@dataclass(frozen=True)
class SideBySide:
    """Both continuations of one prompt, and the mean KL(base ‖ edited) in nats a token."""

    base: Side
    edited: Side
    kl: float


class Explorer:
    """Base and edited continuations of a prompt for any edit along one of the probes.

    Args:
        probes: Directions by name, as `probe.load` gives them; the first one is shown first.
        scorers: Whose verdicts are shown; the first one's is counted.
        scores: Scores of all rows by (score, probe), as `selection.table.Table` has them; the
            cosine is computed where it is not among them.
        matrix, unit, row_norm: Of the study's edits, so that a chosen one is the same here.
        reads: What rows of a score move along where it is not the probe: (blocks, width) by score.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        probes: Mapping[str, Probe],
        scorers: Sequence[Scorer] = (),
        *,
        scores: Mapping[tuple[str, str], Tensor] | None = None,
        matrix: str = "gate",
        unit: Unit = "row_norm",
        row_norm: float | None = None,
        reads: Mapping[str, Tensor] | None = None,
    ):
        if not probes:
            raise UserError("there are no probes to explore; fit or load at least one")
        self.model = model
        self.tokenizer = tokenizer
        self.probes = dict(probes)
        self.scorers = list(scorers)
        self.matrix = matrix
        self.unit: Unit = unit
        self.blocks = layout.row_blocks(model, matrix)
        self._scores = dict(scores or {})
        self._reads = dict(reads or {})
        self._row_norm = region.mean_row_norm(model, matrix) if row_norm is None else row_norm
        self._rates: dict[tuple[Any, ...], Estimate] = {}

    @property
    def kinds(self) -> list[str]:
        """What rows can be scored by: what was given, and the cosine."""
        return list(dict.fromkeys([*(kind for kind, _ in self._scores), COSINE]))

    def surgery(self, edit: Edit) -> Surgery:
        """The edit as a patch. UserError for rows that were never scored that way."""
        if edit.direction not in self.probes:
            raise UserError(
                f"there is no probe {edit.direction}; there is {', '.join(self.probes)}"
            )
        probe = self.probes[edit.direction]
        key = (edit.score, edit.direction)
        if key not in self._scores:
            if edit.score != COSINE:
                raise UserError(
                    f"rows have no score {edit.score} for {edit.direction}; choose {COSINE}"
                )
            self._scores[key] = region.cosine_scores(self.model, probe.direction, self.matrix)
        rows = region.select(self._scores[key], edit.k, select=edit.rows)  # type: ignore[arg-type]
        built = Surgery.build(
            self.model,
            rows,
            self._reads.get(edit.score, probe.direction),
            edit.strength,
            unit=self.unit,
            matrix=self.matrix,
            row_norm=self._row_norm,
            about={"probe": edit.direction, "rule": edit.score, "edit": str(edit)},
        )
        own = {block: s for block, s in edit.layers.items() if s != edit.strength}
        if not own:
            return built
        unit = self._row_norm if self.unit == "row_norm" else 1.0
        coefficients = built.coefficients.clone()
        for block, strength in own.items():
            coefficients[self.blocks[built.rows] == block] = strength * unit
        return replace(built, coefficients=coefficients)

    def text(self, prompt: str, writing: Writing) -> str:
        """The prompt as the model reads it: in its chat template, if that is asked for."""
        return generation.chat_prompt(self.tokenizer, prompt) if writing.chat else prompt

    @torch.inference_mode()
    def compare(self, prompt: str, edit: Edit, writing: Writing | None = None) -> SideBySide:
        """Continue `prompt` without and with the edit; the model is left as it was.

        Both texts are scored token by token by the base's hidden states at the probe's layer, one
        ruler for both. The divergence is over the tokens of the base's own continuation.
        """
        writing = writing or Writing()
        surgery, prompt = self.surgery(edit), self.text(prompt, writing)
        before = self._continue(prompt, writing)
        ids, start = self._ids(prompt, before, writing)
        base_logits = self._logprobs(ids, start)
        with surgery.applied(self.model):
            after = self._continue(prompt, writing)
            edited_logits = self._logprobs(ids, start)
        kl = first_token_kl(base_logits, edited_logits)
        probe = self.probes[edit.direction]
        return SideBySide(
            self._side(prompt, before, probe, writing),
            self._side(prompt, after, probe, writing),
            float(np.mean(kl)) if len(kl) else 0.0,
        )

    def rate(
        self, prompts: Sequence[str], writing: Writing | None = None, edit: Edit | None = None
    ) -> Estimate:
        """Share of the prompts whose continuation shows the behaviour, by the first scorer.

        Without `edit` the unedited model's, which is read once. UserError without a scorer.
        """
        if not self.scorers or not prompts:
            raise UserError("a rate needs a scorer and prompts; give the panel both")
        writing = writing or Writing()
        key = (writing, *prompts)
        if edit is None and key in self._rates:
            return self._rates[key]
        scorer = self.scorers[0]
        asked = [
            Prompt(str(number), self.text(text, writing), "panel")
            for number, text in enumerate(prompts)
        ]
        with self._edited(edit):
            found = responses.evaluate(
                self.model, self.tokenizer, asked, [scorer], **writing.options
            )
        share = proportion(responses.flags(found["rows"], scorer.name, threshold(scorer)))
        if edit is None:
            self._rates[key] = share
        return share

    @contextmanager
    def _edited(self, edit: Edit | None) -> Iterator[None]:
        if edit is None:
            yield
            return
        with self.surgery(edit).applied(self.model):
            yield

    def _continue(self, prompt: str, writing: Writing) -> str:
        ((text,),) = generation.generate(self.model, self.tokenizer, [prompt], **writing.options)
        return text

    def _ids(self, prompt: str, text: str, writing: Writing) -> tuple[list[int], int]:
        """Tokens of prompt and continuation, and where the continuation begins."""
        room = writing.max_new_tokens
        (head,) = generation.encode(self.model, self.tokenizer, [prompt], room, truncate=True)
        tail = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [*head, *tail[:room]], len(head)

    def _logprobs(self, ids: list[int], start: int) -> Tensor:
        """Log-probabilities (continuation tokens, vocabulary), each before its token is read."""
        device = self.model.get_input_embeddings().weight.device
        logits = self.model(torch.tensor([ids], device=device), use_cache=False).logits
        return logits[0, start - 1 : -1].float().log_softmax(-1).cpu()

    def _side(self, prompt: str, text: str, probe: Probe, writing: Writing) -> Side:
        ids, start = self._ids(prompt, text, writing)
        device = self.model.get_input_embeddings().weight.device
        output = self.model(
            torch.tensor([ids], device=device), output_hidden_states=True, use_cache=False
        )
        scores = probe.score(output.hidden_states[probe.layer][0, start:].cpu()).tolist()
        verdicts = {}
        for scorer in self.scorers:
            value = float(scorer([text], [prompt])[0])
            verdicts[scorer.name] = (value, value >= threshold(scorer))
        tokens = [self.tokenizer.decode([token]) for token in ids[start:]]
        return Side(text, tokens, scores, verdicts)

"""A panel to try edits by hand: move strength and K, read base and edited model side by side.

The model is edited in place and restored after every reading, so on a small model the answer comes
at once. Without a browser (papermill, nbconvert) the panel is a picture of its first state.
"""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.evaluation.damage import first_token_kl
from surgery_lib.models import generation
from surgery_lib.scorers.base import Scorer, threshold
from surgery_lib.surgery import Surgery, region
from surgery_lib.surgery.probe import Probe

# Set by `surgery_lib.study.run` and by whoever executes notebooks without a screen.
HEADLESS = "MODEL_SURGERY_HEADLESS"
ROW_RULES = ("opposed", "aligned", "random")
FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
WARM, COOL = "213,94,0", "0,114,178"  # of the figures' palette: towards the behaviour, and away


@dataclass(frozen=True)
class Side:
    """One model's continuation: its tokens, the probe's score of each, the scorers' verdicts."""

    text: str
    tokens: list[str]
    scores: list[float]
    verdicts: Mapping[str, tuple[float, bool]]


@dataclass(frozen=True)
class Comparison:
    """Both continuations of one prompt, and the mean KL(base ‖ edited) in nats a token."""

    base: Side
    edited: Side
    kl: float


class Explorer:
    """Base and edited continuations of a prompt for any edit along one of the probes.

    Args:
        probes: Directions by name, as `probe.load` gives them; the first one is shown first.
        scorers: Whose verdicts are shown.
        max_new_tokens: Length of a continuation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        probes: Mapping[str, Probe],
        scorers: Sequence[Scorer] = (),
        *,
        max_new_tokens: int = 24,
    ):
        if not probes:
            raise UserError("there are no probes to explore; fit or load at least one")
        self.model = model
        self.tokenizer = tokenizer
        self.probes = dict(probes)
        self.scorers = list(scorers)
        self.max_new_tokens = max_new_tokens
        self._cosines: dict[str, Tensor] = {}
        self._row_norm = region.mean_row_norm(model)

    def surgery(self, direction: str, rule: str, k: int | float, strength: float) -> Surgery:
        """The edit of the gate rows that a rule selects for one probe's direction."""
        probe = self.probes[direction]
        if direction not in self._cosines:
            self._cosines[direction] = region.cosine_scores(self.model, probe.direction)
        rows = region.select(self._cosines[direction], k, select=rule)  # type: ignore[arg-type]
        return Surgery.build(
            self.model, rows, probe.direction, strength, row_norm=self._row_norm, about={}
        )

    @torch.inference_mode()
    def compare(
        self, prompt: str, direction: str, rule: str, k: int | float, strength: float
    ) -> Comparison:
        """Continue `prompt` (greedily) without and with the edit; the model is left as it was.

        Both texts are scored token by token by the base's hidden states at the probe's layer, one
        ruler for both. The divergence is over the tokens of the base's own continuation.
        """
        surgery = self.surgery(direction, rule, k, strength)
        before = self._continue(prompt)
        ids, start = self._ids(prompt, before)
        base_logits = self._logprobs(ids, start)
        with surgery.applied(self.model):
            after = self._continue(prompt)
            edited_logits = self._logprobs(ids, start)
        kl = first_token_kl(base_logits, edited_logits)
        probe = self.probes[direction]
        return Comparison(
            self._side(prompt, before, probe),
            self._side(prompt, after, probe),
            float(np.mean(kl)) if len(kl) else 0.0,
        )

    def _continue(self, prompt: str) -> str:
        ((text,),) = generation.generate(
            self.model,
            self.tokenizer,
            [prompt],
            max_new_tokens=self.max_new_tokens,
            truncate=True,
            progress=False,
        )
        return text

    def _ids(self, prompt: str, text: str) -> tuple[list[int], int]:
        """Tokens of prompt and continuation, and where the continuation begins."""
        (head,) = generation.encode(
            self.model, self.tokenizer, [prompt], self.max_new_tokens, truncate=True
        )
        tail = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [*head, *tail[: self.max_new_tokens]], len(head)

    def _logprobs(self, ids: list[int], start: int) -> Tensor:
        """Log-probabilities (continuation tokens, vocabulary), each before its token is read."""
        device = self.model.get_input_embeddings().weight.device
        logits = self.model(torch.tensor([ids], device=device), use_cache=False).logits
        return logits[0, start - 1 : -1].float().log_softmax(-1).cpu()

    def _side(self, prompt: str, text: str, probe: Probe) -> Side:
        ids, start = self._ids(prompt, text)
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


def render(comparison: Comparison, prompt: str, caption: str) -> str:
    """The comparison as HTML that needs nothing from anywhere, on light and dark pages alike."""
    scores = [abs(score) for side in (comparison.base, comparison.edited) for score in side.scores]
    scale = max(scores, default=1.0) or 1.0
    cells = "".join(
        '<td style="width:50%;vertical-align:top;text-align:left;padding:10px;white-space:normal;'
        f'border:1px solid #888;color:#111;background:#fff"><b>{name}</b>'
        f'<p style="line-height:1.9;margin:8px 0"><span style="color:#666">{html.escape(prompt)}'
        f"</span>{_shaded(side, scale)}</p>{_verdicts(side)}</td>"
        for name, side in (("base", comparison.base), ("edited", comparison.edited))
    )
    return (
        f'<div class="model-surgery-panel" style="font-family:sans-serif;max-width:900px">'
        f'<table style="width:100%;table-layout:fixed;border-collapse:collapse"><tr>{cells}</tr>'
        f'</table><p style="margin:6px 2px;line-height:1.5;white-space:normal">'
        f"{html.escape(caption)} · KL(base ‖ edited) "
        f"<b>{comparison.kl:.3f}</b> nats a token · shading: probe score, "
        f'<span style="background:rgba({WARM},.55)">towards</span> and '
        f'<span style="background:rgba({COOL},.45)">away from</span> the behaviour</p></div>'
    )


def _shaded(side: Side, scale: float) -> str:
    parts = []
    for token, score in zip(side.tokens, side.scores, strict=True):
        colour = WARM if score > 0 else COOL
        alpha = min(1.0, abs(score) / scale) * 0.6
        parts.append(
            f'<span title="{score:+.2f}" style="background:rgba({colour},{alpha:.2f})">'
            f"{html.escape(token)}</span>"
        )
    return "".join(parts)


def _verdicts(side: Side) -> str:
    parts = [
        f"{html.escape(name)} {value:.2f} {'● shows it' if shows else '○ does not'}"
        for name, (value, shows) in side.verdicts.items()
    ]
    return f'<small style="color:#444">{" · ".join(parts)}</small>'


class Panel:
    """The explorer with its controls; as the last line of a cell it shows itself."""

    def __init__(
        self,
        explorer: Explorer,
        prompt: str,
        *,
        fraction: float = 0.05,
        strength: float = 1.0,
        most: float = 4.0,
    ):
        import ipywidgets as widgets

        self.explorer = explorer
        most = max(most, abs(strength))  # a slider would clamp the chosen edit without a word
        wide = {"layout": widgets.Layout(width="98%"), "style": {"description_width": "80px"}}
        fractions = sorted({*FRACTIONS, fraction})
        self.controls: dict[str, Any] = {
            "strength": widgets.FloatSlider(
                strength, min=-most, max=most, step=0.1, description="strength α",
                continuous_update=False, **wide,
            ),
            "k": widgets.SelectionSlider(
                options=[(f"{100 * f:g} % of rows", f) for f in fractions], value=fraction,
                description="K", continuous_update=False, **wide,
            ),
            "direction": widgets.Dropdown(
                options=list(explorer.probes), description="direction", **wide
            ),
            "rule": widgets.Dropdown(options=ROW_RULES, description="rows", **wide),
        }  # fmt: skip
        self.prompt = widgets.Textarea(
            prompt, description="prompt", continuous_update=False, rows=2,
            layout=widgets.Layout(width="98%"), style={"description_width": "80px"},
        )  # fmt: skip
        self.output = widgets.HTML()
        left, right = ("strength", "k"), ("direction", "rule")
        half = widgets.Layout(width="50%", overflow="hidden")
        columns = [
            widgets.VBox([self.controls[name] for name in side], layout=half)
            for side in (left, right)
        ]
        whole = widgets.Layout(width="100%", max_width="900px", overflow="hidden")
        self.widget = widgets.VBox([self.prompt, widgets.HBox(columns), self.output], layout=whole)
        for control in (*self.controls.values(), self.prompt):
            control.observe(self._changed, names="value")
        self._changed()

    def _changed(self, _change: Any = None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        if not self.prompt.value.strip():
            self.output.value = "<p>Write a prompt.</p>"
            return
        comparison = self.explorer.compare(self.prompt.value, **values)
        caption = (
            f"{values['direction']}, {100 * values['k']:g} % {values['rule']} rows, "
            f"α = {values['strength']:.1f}"
        )
        self.output.value = render(comparison, self.prompt.value, caption)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        still = {"text/html": self.output.value, "text/plain": "the panel, as it stood"}
        if os.environ.get(HEADLESS):
            return still
        live = self.widget._repr_mimebundle_(**kwargs)
        return live | still if isinstance(live, dict) else live


def panel(
    model: nn.Module,
    tokenizer: Any,
    probes: Mapping[str, Probe],
    scorers: Sequence[Scorer],
    prompt: str,
    **options: Any,
) -> Panel:
    """A panel for a model and its probes, starting with `prompt`; options as `Panel` has them."""
    return Panel(Explorer(model, tokenizer, probes, scorers), prompt, **options)

"""The panel: controls around `explore.Explorer`, base and edited model side by side.

It opens at the chosen edit. Without a browser (papermill, nbconvert) it is a picture of its first
state.
"""

import html
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from surgery_lib.errors import UserError
from surgery_lib.experiments.explore import ROW_RULES, Edit, Explorer, Writing
from surgery_lib.experiments.panel_page import RED, render
from surgery_lib.scorers.base import Scorer
from surgery_lib.surgery.probe import Probe

# What a search's table shares with the panel, so that a chosen edit is the same in both.
SHARED = ("scores", "matrix", "unit", "row_norm", "reads")
# 1 for a still picture, 0 for the controls; where it is not set, `on_screen` looks for a browser.
HEADLESS = "MODEL_SURGERY_HEADLESS"
# What Jupyter's server, VS Code and Colab set for a kernel; papermill and nbconvert set none.
SCREENS = ("JPY_SESSION_NAME", "VSCODE_CWD", "VSCODE_PID", "COLAB_RELEASE_TAG")
FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ALL = "all"  # blocks
PROMPTS_SHOWN = 70  # characters of a prompt in the list


class Panel:
    """The explorer with its controls; as the last line of a cell it shows itself.

    Args:
        prompts: Texts to choose from, and to count the behaviour over; the first is shown.
        chosen: The edit that it opens with and that Reset goes back to.
        budget: Nats a token, beyond which the divergence is red.
        most: The largest strength of the slider; there is room beyond a chosen one.
    """

    def __init__(
        self,
        explorer: Explorer,
        prompts: Sequence[str],
        chosen: Edit,
        *,
        budget: float | None = None,
        most: float = 4.0,
        writing: Writing | None = None,
    ):
        if not prompts:
            raise UserError("the panel needs a prompt to start with; give one or several")
        self.explorer = explorer
        self.prompts = list(dict.fromkeys(prompts))
        self.chosen = chosen
        self.budget = budget
        self.layers: dict[int, float] = dict(chosen.layers)
        self._loading = False
        # A slider would clamp the chosen edit without a word.
        most = max(most, 1.5 * abs(chosen.strength), *map(abs, self.layers.values()))
        self._build(most, writing or Writing())
        self._run()

    def _build(self, most: float, writing: Writing) -> None:
        import ipywidgets as widgets

        full, style = widgets.Layout(width="98%"), {"description_width": "90px"}
        wide: dict[str, Any] = {"layout": full, "style": style}
        fractions = sorted({*FRACTIONS, self.chosen.k})
        blocks = sorted(set(self.explorer.blocks.tolist()))
        shown = [(text[:PROMPTS_SHOWN], text) for text in self.prompts]
        slide = {"continuous_update": False, **wide}
        self.controls: dict[str, Any] = {
            "strength": widgets.FloatSlider(
                min=-most, max=most, step=0.1, description="strength α", **slide
            ),
            "block": widgets.Dropdown(
                options=[("all layers", ALL), *((f"block {b} alone", b) for b in blocks)],
                description="of", **wide,
            ),
            "k": widgets.SelectionSlider(
                options=[(_share(f), f) for f in fractions], description="K", **slide
            ),
            "temperature": widgets.FloatSlider(
                writing.temperature, min=0, max=1.5, step=0.1, description="temperature", **slide
            ),
            "direction": widgets.Dropdown(
                options=list(self.explorer.probes), description="direction", **wide
            ),
            "score": widgets.Dropdown(
                options=self.explorer.kinds, description="rows by", **wide
            ),
            "rows": widgets.Dropdown(options=ROW_RULES, description="which", **wide),
            "length": widgets.IntSlider(
                writing.max_new_tokens, min=4, max=128, description="new tokens", **slide
            ),
        }  # fmt: skip
        self.pick = widgets.Dropdown(options=shown, description="prompts", **wide)
        self.prompt = widgets.Textarea(
            self.prompts[0], description="prompt", continuous_update=False, rows=2, **wide
        )
        template = bool(getattr(self.explorer.tokenizer, "chat_template", None))
        small = {"indent": False, "layout": widgets.Layout(width="auto")}
        self.chat = widgets.Checkbox(
            writing.chat and template, description="chat template", disabled=not template, **small
        )
        self.counted = widgets.Checkbox(
            False, description=f"rate over {len(self.prompts)} prompts",
            disabled=not self.explorer.scorers, **small,
        )  # fmt: skip
        self.live = widgets.Checkbox(True, description="at once", **small)
        self.buttons = {
            name: widgets.Button(description=name, layout=widgets.Layout(width="90px"))
            for name in ("Run", "Reset", "Save")
        }
        self.folder = widgets.Text(
            "my-surgery", description="into", style=style, layout=widgets.Layout(width="70%")
        )
        self.status = widgets.HTML()
        self.output = widgets.HTML()
        half = widgets.Layout(width="50%", overflow="hidden")
        columns = [
            widgets.VBox([self.controls[name] for name in side], layout=half)
            for side in (
                ("strength", "block", "k", "temperature"),
                ("direction", "score", "rows", "length"),
            )
        ]
        flow = widgets.Layout(width="98%", flex_flow="row wrap")
        line = [self.buttons["Run"], self.buttons["Reset"], self.live, self.chat, self.counted]
        whole = widgets.Layout(width="100%", max_width="900px", overflow="hidden")
        self.widget = widgets.VBox(
            [
                self.pick,
                self.prompt,
                widgets.HBox(columns),
                widgets.HBox(line, layout=flow),
                self.status,
                self.output,
                widgets.HBox([self.buttons["Save"], self.folder], layout=flow),
            ],
            layout=whole,
        )
        self._show(self.chosen)
        for name, control in self.controls.items():
            control.observe({"strength": self._strength, "block": self._block}.get(
                name, self._changed), names="value")  # fmt: skip
        for control in (self.prompt, self.chat, self.counted):
            control.observe(self._changed, names="value")
        self.pick.observe(self._picked, names="value")
        self.buttons["Run"].on_click(lambda _: self._run())
        self.buttons["Reset"].on_click(lambda _: self.reset())
        self.buttons["Save"].on_click(lambda _: self._guarded(self._save))

    @property
    def edit(self) -> Edit:
        """The edit that the controls say."""
        value = {name: control.value for name, control in self.controls.items()}
        return Edit(
            value["direction"], value["score"], value["rows"], value["k"],
            self._everywhere, dict(self.layers),
        )  # fmt: skip

    @property
    def writing(self) -> Writing:
        """How continuations are written, as the controls say."""
        value = {name: self.controls[name].value for name in ("length", "temperature")}
        return Writing(value["length"], value["temperature"], 0, self.chat.value)

    def reset(self) -> None:
        """Back to the chosen edit."""
        self._show(self.chosen)
        self._run()

    def _show(self, edit: Edit) -> None:
        self._loading = True
        try:
            self._everywhere, self.layers = edit.strength, dict(edit.layers)
            values = {"direction": edit.direction, "score": edit.score, "rows": edit.rows}
            for name, value in {**values, "k": edit.k, "block": ALL}.items():
                self.controls[name].value = value
            self.controls["strength"].value = edit.strength
        finally:
            self._loading = False

    def _strength(self, change: Any) -> None:
        if self._loading:
            return
        block = self.controls["block"].value
        if block == ALL:
            self._everywhere = change["new"]
        else:
            self.layers[block] = change["new"]
        self._changed()

    def _block(self, change: Any) -> None:
        """Another block is looked at: the slider shows its strength, nothing is edited."""
        self._loading = True
        try:
            held = self.layers.get(change["new"], self._everywhere)
            self.controls["strength"].value = held
        finally:
            self._loading = False

    def _picked(self, change: Any) -> None:
        self.prompt.value = change["new"]  # which runs

    def _changed(self, _change: Any = None) -> None:
        if not self._loading and self.live.value:
            self._run()

    def _run(self) -> None:
        self._guarded(self._compared)

    def _guarded(self, work: Callable[[], str]) -> None:
        """Do it under a busy sign; a UserError is a line: a widget's own would be lost."""
        self.status.value = '<span class="busy">⏳ running…</span>'
        self.buttons["Run"].disabled = True
        started = time.perf_counter()
        try:
            said = work()
            self.status.value = f"{said} · {time.perf_counter() - started:.1f} s"
        except UserError as error:
            self.status.value = f'<b style="color:{RED}">{html.escape(str(error))}</b>'
        finally:
            self.buttons["Run"].disabled = False

    def _compared(self) -> str:
        prompt, edit, writing = self.prompt.value, self.edit, self.writing
        if not prompt.strip():
            self.output.value = "<p>Write a prompt.</p>"
            return "ready"
        comparison = self.explorer.compare(prompt, edit, writing)
        caption = f"{'the chosen edit: ' if edit == self.chosen else ''}{edit}"
        self.output.value = render(comparison, prompt, caption, self.budget)
        if not self.counted.value:
            return "ready"
        base = self.explorer.rate(self.prompts, writing)
        edited = self.explorer.rate(self.prompts, writing, edit)
        return f"shows it: {_percent(base)} → {_percent(edited)} of {base.n} prompts"

    def _save(self) -> str:
        folder = Path(self.folder.value.strip() or ".")
        if (folder / "surgery.safetensors").exists():
            raise UserError(f"{folder} holds a patch already; name another folder")
        self.explorer.surgery(self.edit).save(folder)
        return html.escape(f"saved as a patch in {folder}")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        still = {"text/html": self.output.value, "text/plain": "the panel, as it stood"}
        if not on_screen():
            return still
        live = self.widget._repr_mimebundle_(**kwargs)
        return live | still if isinstance(live, dict) else live


def on_screen() -> bool:
    """Whether somebody can move the controls: a notebook run by papermill shows no widgets."""
    said = os.environ.get(HEADLESS)
    if said is not None:
        return said in ("", "0")
    return any(name in os.environ for name in SCREENS)


def _share(k: float) -> str:
    return f"{100 * k:g} % of rows"


def _percent(share: Any) -> str:
    return f"{100 * share.value:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}] %"


def panel(
    model: nn.Module,
    tokenizer: Any,
    probes: Mapping[str, Probe],
    scorers: Sequence[Scorer],
    prompts: str | Sequence[str],
    *,
    table: Any = None,
    point: Any = None,
    **options: Any,
) -> Panel:
    """A panel for a model and its probes; it opens with the first of `prompts`.

    `table` (`selection.table.Table`) brings the rows' scores and the unit of strength, `point`
    (`table.Point`) says which edit was chosen; without it, the first probe at the defaults. The
    other options are `Panel`'s.
    """
    given: dict[str, Any] = {}
    if table is not None:
        given = {name: getattr(table, name) for name in SHARED}
    explorer = Explorer(model, tokenizer, probes, scorers, **given)
    chosen = Edit(next(iter(explorer.probes)), explorer.kinds[0])
    if point is not None:
        chosen = Edit(point.probe, point.rule, k=point.fraction, strength=point.strength)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    return Panel(explorer, texts, chosen, **options)

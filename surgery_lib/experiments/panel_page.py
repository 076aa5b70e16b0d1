"""What the panel shows of one comparison, as HTML that needs nothing from anywhere."""

import html

from surgery_lib.experiments.explore import Side, SideBySide

WARM, COOL = "213,94,0", "0,114,178"  # of the figures' palette: towards the behaviour, and away
GREEN, RED = "#00694e", "#b00020"  # within the budget, beyond it; readable on white


def render(comparison: SideBySide, prompt: str, caption: str, budget: float | None = None) -> str:
    """The comparison as HTML that needs nothing from anywhere, on light and dark pages alike.

    With a `budget`, in nats a token, the divergence says by colour and word whether it is within.
    """
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
        f"{html.escape(caption)} · KL(base ‖ edited) {_divergence(comparison.kl, budget)} "
        "· shading: probe score, "
        f'<span style="background:rgba({WARM},.55)">towards</span> and '
        f'<span style="background:rgba({COOL},.45)">away from</span> the behaviour</p></div>'
    )


def _divergence(kl: float, budget: float | None) -> str:
    if budget is None:
        return f"<b>{kl:.3f}</b> nats a token"
    within = kl <= budget
    return (
        f'<b style="color:#fff;background:{GREEN if within else RED};padding:1px 5px">{kl:.3f}</b> '
        f"nats a token on this prompt, {'within' if within else 'BEYOND'} the budget of {budget:g} "
        "for harmless text"
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

"""Scores that count in the norm before a row: what a gate sees is the normalised state, gained.

A gate opens by g = row . (gain * x / |x|), so the row acts on the residual stream as row * gain
does. The paper's cosine leaves the gain out.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import region

# The norm whose output a matrix reads, under the names that blocks give it: the first that exists.
# Gemma 2 and 3 have norms on both sides of the MLP. OLMo 2 has them after it only, so no gain.
MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
ATTENTION_NORMS = ("input_layernorm", "ln_1")
NORMS: dict[str, Sequence[str]] = {
    "gate": MLP_NORMS,
    "up": MLP_NORMS,
    "q": ATTENTION_NORMS,
    "k": ATTENTION_NORMS,
    "v": ATTENTION_NORMS,
}
AFTER_ONLY = "post_feedforward_layernorm"
# Behind the MLP and behind attention: Gemma 2 and 3 and OLMo 2; GLM-4.
BEHIND = (
    (AFTER_ONLY, "post_attention_layernorm"),
    ("post_mlp_layernorm", "post_self_attn_layernorm"),
)


@torch.no_grad()
def gains(model: nn.Module, matrix: str = "gate") -> list[Tensor]:
    """The gain of the norm before the matrix, block by block: (width,), float32; ones for no norm.

    UserError for matrices that do not read the residual stream.
    """
    if matrix not in NORMS:
        raise UserError(
            f"matrix {matrix!r} does not read a normalised state; choose {', '.join(NORMS)} for "
            "the rule cosine_gain, or another rule"
        )
    width = layout.hidden_width(model)
    return [gain_of(_norm(block, NORMS[matrix]), width) for block in layout.blocks(model)]


def cosine_gain_scores(model: nn.Module, direction: Tensor, matrix: str = "gate") -> Tensor:
    """Cosine with the direction of every row times the gain before it: (rows,), float32."""
    by_block = gains(model, matrix)
    parts = []
    for rows in layout.weight_rows(model, matrix):
        gain = by_block[rows.block].to(rows.weight.device)
        parts.append(region.row_cosines([rows.weight.float() * gain], direction))
    return torch.cat(parts)


def _norm(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    if hasattr(block, AFTER_ONLY) and not hasattr(block, names[0]):
        return None
    return next((getattr(block, name) for name in names if hasattr(block, name)), None)


def norm_after(block: nn.Module, part: Literal["mlp", "attention"] = "mlp") -> nn.Module | None:
    """The norm of what the MLP (or attention) writes, where the architecture has one."""
    for mlp, attention in BEHIND:
        if hasattr(block, mlp):
            return getattr(block, mlp if part == "mlp" else attention, None)
    return None


def pulled_back(gain: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
    """Gradients (n, width) by what a norm is given, `states`, from those by what it gives.

    For gain * x / rms(x); where a norm takes the mean away first, that is left out.
    """
    gained = slopes * gain.to(slopes.device)
    along = states / states.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    across = gained - along * (along * gained).sum(-1, keepdim=True)
    return across / states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)


def gain_of(norm: nn.Module | None, width: int) -> Tensor:
    """What a norm multiplies the normalised state by: (width,), float32; ones for no norm."""
    if norm is None:
        return torch.ones(width)
    weight = next(iter(norm.parameters()), torch.ones(1))
    # Asked, not read: Gemma adds 1 to the stored weight. Signs in turn have mean 0 and norm
    # sqrt(width), so that norms of either kind leave them as they are; a bias cancels.
    signs = torch.ones(width, dtype=weight.dtype, device=weight.device)
    signs[1::2] = -1
    gained = (norm(signs[None]) - norm(-signs[None]))[0] / 2 * signs
    return gained.float().cpu()

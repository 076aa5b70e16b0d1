"""Scores of rows by what adding a direction to them would do, to first order.

The paper ranks rows by their angle to the direction; whether a row's neuron is ever open on the
behaviour's texts, and where it writes, does not count there. It does here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout
from surgery_lib.models.tokens import real_tokens
from surgery_lib.surgery import gains, region

Score = Literal["cosine", "cosine_gain", "effect"]
# Scores that need nothing but the weights.
WEIGHTS_ALONE = {"cosine": region.cosine_scores, "cosine_gain": gains.cosine_gain_scores}


def effect_scores(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    directions: Tensor,
    *,
    max_tokens: int = 100,
    tokens_per_batch: int = 4096,
    progress: bool = True,
) -> Tensor:
    """First-order effect of adding each direction to each gate row: (directions, rows), float32.

    Row r of a gated MLP contributes silu(g) u d_r to the residual stream, with g = gate_r . x,
    u = up_r . x and d_r its column of the down projection. Adding a small multiple of v to the row
    changes g by v . x, and so the output along v by

        mean over tokens of  silu'(g) u (x . v)  times  d_r . v ,

    measured on texts that show the behaviour. The most negative rows push against it. Only forward
    passes are needed. `directions` is (n, width) and is normalised. Without gating, u = 1.

    Raises:
        UserError: Mixtures of experts, whose tokens each see other rows.
    """
    region.check_width(directions[0], layout.hidden_width(model))
    units = directions.float() / directions.float().norm(dim=1, keepdim=True)
    blocks = layout.blocks(model)
    check_dense(model)
    modules = {str(number): layout.mlp_module(block) for number, block in enumerate(blocks)}
    sums = {name: torch.zeros(()) for name in modules}

    def visit(name: str, inputs: Tensor, lengths: Tensor, _texts: Tensor) -> None:
        real = real_tokens(lengths, inputs.shape[1])
        part = _pushes(blocks[int(name)], activation_of(modules[name]), inputs[real], units)
        sums[name] = sums[name] + part.cpu()

    tokens = activations.read_inputs(
        model,
        tokenizer,
        texts,
        modules,
        visit,
        max_tokens=max_tokens,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
    )
    scores = torch.cat([total / tokens for total in sums.values()], dim=1)
    if not torch.isfinite(scores).all():
        raise UserError(
            "the weights or the directions hold NaN or infinite values; load sound ones"
        )
    return scores


def score_rows(
    model: nn.Module,
    directions: Sequence[Tensor],
    score: str,
    tokenizer: Any = None,
    texts: Sequence[str] = (),
    matrix: str = "gate",
) -> list[Tensor]:
    """Scores of all rows along each direction (width,), by one measure: a tensor (rows,) each.

    `cosine` is the paper's, `cosine_gain` counts in the norm before the matrix, `effect` is the
    first-order effect on `texts` that show the behaviour, for which `tokenizer` is needed.

    Raises:
        UserError: Another score, or the effect without texts or of another matrix.
    """
    if score in WEIGHTS_ALONE:
        return [WEIGHTS_ALONE[score](model, direction, matrix) for direction in directions]
    if score != "effect":
        raise UserError(f"score {score!r} is unknown; choose one of {', '.join(get_args(Score))}")
    if tokenizer is None or not texts or matrix != "gate":
        raise UserError(
            "score='effect' ranks rows of the gate by texts that show the behaviour; give "
            "tokenizer= and texts=, or use score='cosine'"
        )
    return list(effect_scores(model, tokenizer, texts, torch.stack(list(directions))))


def select_rows(
    model: nn.Module,
    direction: Tensor,
    k: int | float = 0.05,
    *,
    score: Score = "cosine",
    select: region.Select = "opposed",
    tokenizer: Any = None,
    texts: Sequence[str] = (),
    matrix: str = "gate",
    seed: int = 0,
) -> Tensor:
    """The rows to edit, ascending: (K,), int64.

    `score` says how rows are ranked: by `cosine` with the direction (width,), as in the paper, by
    `cosine_gain`, which counts in the norm before the matrix, or by first-order `effect` on `texts`
    that show the behaviour, for which `tokenizer` is needed. `select` says which of the ranking are
    taken. `k` is a count or, a float, a share of all rows.

    Raises:
        UserError: Another score, or the effect without texts or of another matrix.
    """
    (scores,) = score_rows(model, [direction], score, tokenizer, texts, matrix)
    return region.select(scores, k, select=select, seed=seed)


def _pushes(block: nn.Module, act: Callable[[Tensor], Tensor], x: Tensor, units: Tensor) -> Tensor:
    """Sum over tokens x (tokens, width) of what each row's move does along each direction."""
    mlp, width = layout.mlp_of(block), x.shape[1]
    slope = slopes(block, act, x)
    units = units.to(x.device)
    pushed = (x.float() @ units.t()).t() @ slope.float()  # (directions, rows)
    return pushed * (units @ rows_of(block, mlp.down, width).float().t())


def slopes(block: nn.Module, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """How each row's unit answers to its gate, at inputs x (tokens, width): (tokens, rows).

    act'(g) u for gated units, with the architecture's own activation; act'(g) without gating.
    """
    gate, up = _gate_and_up(block, x)
    slope = _slope(act, gate)
    return slope if up is None else slope * up


def written(block: nn.Module, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the MLP writes at inputs x (tokens, width), before a norm behind it and without bias."""
    gate, up = _gate_and_up(block, x)
    units = act(gate) if up is None else act(gate) * up
    return units @ rows_of(block, layout.mlp_of(block).down, x.shape[1])


def _gate_and_up(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    mlp, width = layout.mlp_of(block), x.shape[1]

    def linear(place: layout.Place) -> Tensor:
        return nn.functional.linear(x, rows_of(block, place, width), bias_of(block, place))

    return linear(mlp.gate), None if mlp.up is None else linear(mlp.up)


def rows_of(block: nn.Module, place: layout.Place, width: int) -> Tensor:
    """The rows (rows, width) of one kind of a block without experts, a view."""
    weight = block.get_parameter(place.path).data
    return layout.place_views(place, weight, width, place.path)[0]


def bias_of(block: nn.Module, place: layout.Place) -> Tensor | None:
    """The bias (rows,) of a block's rows of one kind, if they have one."""
    path = place.path.removesuffix("weight") + "bias"
    if not layout.has_parameter(block, path):
        return None
    share, shares = place.part
    bias = block.get_parameter(path).data
    size = len(bias) // shares
    return bias[share * size : (share + 1) * size]


def check_dense(model: nn.Module) -> None:
    """UserError for mixtures of experts: which tokens a row sees is the router's to say."""
    if layout.is_mixture(model):
        raise UserError(
            "the model is a mixture of experts, and this knows dense MLPs only; use the cosine "
            "rule for experts, or a method that hooks whole blocks"
        )


# What the modules of the table call their activation function.
ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


def activation_of(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation function of an MLP module."""
    for name in ACTIVATION_NAMES:
        if hasattr(mlp, name):
            function: Callable[[Tensor], Tensor] = getattr(mlp, name)
            return function
    raise UserError(
        f"{type(mlp).__name__} has no activation function under {', '.join(ACTIVATION_NAMES)}"
    )


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Derivative of an elementwise function."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(at).sum(), at)
    return slope

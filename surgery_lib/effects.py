"""Scores of rows by what adding a direction to them would do, to first order.

The paper ranks rows by their angle to the direction; whether a row's neuron is ever open on the
behaviour's texts, and where it writes, does not count there. It does here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from surgery_lib import activations, layout, region
from surgery_lib.errors import UserError


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

    Raises UserError for mixtures of experts, whose tokens each see other rows.
    """
    region.check_width(directions[0], layout.hidden_width(model))
    units = directions.float() / directions.float().norm(dim=1, keepdim=True)
    sums: dict[int, Tensor] = {}
    token_ids = activations.tokenize(model, tokenizer, texts, max_tokens)
    base = getattr(model, "base_model", model)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    was_training = model.training
    model.eval()
    counter = _EffectCounter(model, units, sums)
    try:
        with torch.no_grad(), tqdm(total=len(texts), desc="effect", disable=not progress) as bar:
            for batch in activations.batches([len(ids) for ids in token_ids], tokens_per_batch):
                ids, lengths = activations.pad([token_ids[i] for i in batch])
                counter.real = torch.arange(ids.shape[1]) < lengths[:, None]
                base(input_ids=ids.to(device), use_cache=False)
                bar.update(len(batch))
    finally:
        counter.remove()
        model.train(was_training)
    tokens = sum(len(ids) for ids in token_ids)
    scores = torch.cat([sums[block] / tokens for block in sorted(sums)], dim=1)
    if not torch.isfinite(scores).all():
        raise UserError(
            "the weights or the directions hold NaN or infinite values; load sound ones"
        )
    return scores


class _EffectCounter:
    """Hooks on every MLP that sum silu'(g) u (x . v) over real tokens."""

    def __init__(self, model: nn.Module, units: Tensor, sums: dict[int, Tensor]) -> None:
        self.units = units
        self.sums = sums
        self.real = torch.empty(0, dtype=torch.bool)
        found = [(block, layout.mlp_of(block)) for block in layout.blocks(model)]
        # Before any hook: a refusal leaves the model as it was.
        if any(mlp.gate.stacked or "{expert}" in mlp.gate.path for _, mlp in found):
            raise UserError(
                "the effect rule knows dense MLPs only; use the cosine rule for experts"
            )
        self.handles = []
        for index, (block, mlp) in enumerate(found):
            module = block.get_submodule(mlp.gate.path.split(".")[0])
            self.handles.append(module.register_forward_pre_hook(self._hook(index, block, mlp)))

    def _hook(self, index: int, block: nn.Module, mlp: layout.Mlp) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0][self.real.to(args[0].device)]  # (tokens, width)
            width = x.shape[1]
            gate, down = (
                layout.place_views(p, block.get_parameter(p.path).data, width, p.path)[0]
                for p in (mlp.gate, mlp.down)
            )
            bias = _bias(block, mlp.gate)
            slope = _slope(activation_of(module), nn.functional.linear(x, gate, bias))
            if mlp.up is not None:
                up = layout.place_views(mlp.up, block.get_parameter(mlp.up.path).data, width, "up")
                slope = slope * nn.functional.linear(x, up[0], _bias(block, mlp.up))
            units = self.units.to(x.device)
            pushed = (x.float() @ units.t()).t() @ slope.float()  # (directions, rows)
            part = (pushed * (units @ down.float().t())).cpu()
            self.sums[index] = self.sums.get(index, torch.zeros_like(part)) + part

        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


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


def _bias(block: nn.Module, gate: layout.Place) -> Tensor | None:
    path = gate.path.removesuffix("weight") + "bias"
    return block.get_parameter(path).data if layout.has_parameter(block, path) else None

"""What a thief might do to a model so that its weights look like others, and pruning.

Each works in place on a model. All but `prune` leave the function as it is, up to rounding: the
order of MLP units, of heads, of hidden dimensions, and scales that cancel, are free; a norm's gain
may stand in the norm or in the weights that read it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.diagnostics.fingerprint import heads
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import gains
from surgery_lib.surgery.effects import bias_of

PRUNED = 0.2
ROUTERS = ("gate.weight", "router.weight", "shared_expert_gate.weight")


@torch.no_grad()
def permute_units(model: nn.Module, generator: torch.Generator) -> None:
    """Another order of every MLP's (and expert's) intermediate units."""
    parts = [layout.weight_rows(model, name) for name in _mlp_matrices(model)]
    for entries in zip(*parts, strict=True):
        order = torch.randperm(len(entries[0].weight), generator=generator)
        for rows in entries:
            _reorder(rows.weight, order)
            bias = None if rows.place.writes else _bias(model, rows)
            if bias is not None:
                _reorder(bias, order)


@torch.no_grad()
def permute_heads(model: nn.Module, generator: torch.Generator) -> None:
    """Another order of the key and value heads with their queries, and of queries in each group."""
    queries, keys = heads(model)
    every = {name: layout.weight_rows(model, name) for name in layout.ATTENTION}
    for block in range(len(layout.blocks(model))):
        groups = torch.randperm(keys, generator=generator)
        within = torch.stack(
            [torch.randperm(queries // keys, generator=generator) for _ in range(keys)]
        )
        order = (groups[:, None] * (queries // keys) + within[groups]).flatten()
        for name, rows in every.items():
            of_queries = name in ("q", "o")
            size = len(rows[block].weight) // (queries if of_queries else keys)
            chosen = order if of_queries else groups
            lines = (chosen[:, None] * size + torch.arange(size)).flatten()
            _reorder(rows[block].weight, lines)
            bias = None if name == "o" else _bias(model, rows[block])
            if bias is not None:
                _reorder(bias, lines)


@torch.no_grad()
def rescale(model: nn.Module, generator: torch.Generator, spread: float = 0.5) -> None:
    """Scales that cancel: of units between up and down, of heads between v and o, and q and k."""
    gated = all(layout.mlp_of(block).up is not None for block in layout.blocks(model))
    if not gated:
        raise UserError("units of an MLP without a gate cannot be rescaled: its function is bent")
    ups, downs = (layout.weight_rows(model, name) for name in ("up", "down"))
    for up, down in zip(ups, downs, strict=True):
        scale = _scales(len(up.weight), generator, spread)
        up.weight.mul_(scale[:, None].to(up.weight))
        down.weight.div_(scale[:, None].to(down.weight))
        if (bias := _bias(model, up)) is not None:
            bias.mul_(scale.to(bias))
    keys = heads(model)[1]
    every = {name: layout.weight_rows(model, name) for name in layout.ATTENTION}
    for block, module in enumerate(layout.blocks(model)):
        pairs_of_heads = [("v", "o")]
        if getattr(getattr(module, "self_attn", None), "q_norm", None) is None:
            pairs_of_heads.append(("k", "q"))  # a norm inside the head undoes any scale
        for shared, each in pairs_of_heads:
            scale = _scales(keys, generator, spread)
            one, many = every[shared][block], every[each][block]
            size = len(one.weight) // keys
            one_by_row = scale.repeat_interleave(size)
            by_row = scale.repeat_interleave(len(many.weight) // keys)
            one.weight.mul_(one_by_row[:, None].to(one.weight))
            many.weight.div_(by_row[:, None].to(many.weight))
            if (bias := _bias(model, one)) is not None:
                bias.mul_(one_by_row.to(bias))
            if each == "q" and (bias := _bias(model, many)) is not None:
                bias.div_(by_row.to(bias))


@torch.no_grad()
def fold_gains(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Every norm's gain multiplied into the weights that read it; the norm's own becomes 1."""
    for name in ("q", "k", "v", "gate", "up"):
        if name not in _mlp_matrices(model) and name in ("gate", "up"):
            continue
        by_block = gains.gains(model, name)
        for rows in layout.weight_rows(model, name):
            rows.weight.mul_(by_block[rows.block].to(rows.weight))
    by_block = gains.gains(model, "gate")
    for number, block in enumerate(layout.blocks(model)):
        for name, parameter in layout.mlp_module(block).named_parameters():
            if name in ROUTERS:  # a mixture's router reads the same norm
                parameter.mul_(by_block[number].to(parameter))
        for names in (gains.ATTENTION_NORMS, gains.MLP_NORMS):
            norm = next((getattr(block, name) for name in names if hasattr(block, name)), None)
            if norm is None:
                continue
            width = layout.hidden_width(model)
            neutral = 1.0 if torch.allclose(_asked(norm, width), _stored(norm)) else 0.0
            norm.weight.fill_(neutral)  # Gemma adds 1 to what it stores


@torch.no_grad()
def permute_hidden(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Another order of the hidden dimensions in everything that reads or writes them."""
    width = layout.hidden_width(model)
    order = torch.randperm(width, generator=generator)
    # A bias of rows that read the hidden state belongs to units, even where there are as many.
    readers = {
        bias.data_ptr()
        for name in (*_mlp_matrices(model), *layout.ATTENTION)
        for rows in layout.weight_rows(model, name)
        if not rows.place.writes and (bias := _bias(model, rows)) is not None
    }
    for parameter in model.parameters():
        axes = [axis for axis, size in enumerate(parameter.shape) if size == width]
        # Which of two axes is the hidden one is settled below, by the matrix's place.
        if len(axes) == 1 and parameter.data_ptr() not in readers:
            parameter.data = parameter.data.index_select(axes[0], order.to(parameter.device))
    done = set()
    for name in (*_mlp_matrices(model), *layout.ATTENTION):
        for rows in layout.weight_rows(model, name):
            shape = dict(model.named_parameters())[rows.parameter].shape
            if sum(size == width for size in shape) > 1 and rows.weight.data_ptr() not in done:
                done.add(rows.weight.data_ptr())
                rows.weight.copy_(rows.weight[:, order.to(rows.weight.device)].clone())


@torch.no_grad()
def prune(
    model: nn.Module, generator: torch.Generator | None = None, share: float = PRUNED
) -> None:
    """The smallest weights of every matrix of every block become 0: the function changes."""
    for name in (*_mlp_matrices(model), *layout.ATTENTION):
        for rows in layout.weight_rows(model, name):
            size = rows.weight.abs().float()
            cut = size.flatten().kthvalue(max(1, int(share * size.numel()))).values
            rows.weight.masked_fill_(size <= cut, 0.0)


@torch.no_grad()
def round_weights(
    model: nn.Module, generator: torch.Generator | None = None, bits: int = 4, group: int = 32
) -> None:
    """Every matrix of every block rounded to so many bits, with one scale for `group` numbers.

    What a file of four bits holds, kept in the model's own dtype: the function changes.
    """
    steps = 2 ** (bits - 1) - 1
    for name in (*_mlp_matrices(model), *layout.ATTENTION):
        for rows in layout.weight_rows(model, name):
            flat = rows.weight.float().flatten()
            padded = torch.nn.functional.pad(flat, (0, -len(flat) % group)).view(-1, group)
            scale = padded.abs().amax(1, keepdim=True).clamp_min(1e-12) / steps
            rounded = ((padded / scale).round() * scale).flatten()[: len(flat)]
            rows.weight.copy_(rounded.view(rows.weight.shape).to(rows.weight))


Attack = Callable[[Any, torch.Generator], None]

# Name: what it does, and whether the function stays what it was.
ATTACKS: dict[str, tuple[Attack, bool]] = {
    "units permuted": (permute_units, True),
    "heads permuted": (permute_heads, True),
    "hidden permuted": (permute_hidden, True),
    "rescaled": (rescale, True),
    "gains folded": (fold_gains, True),
    "pruned 20 %": (prune, False),
    "rounded to 4 bits": (round_weights, False),
}


def _reorder(rows: Tensor, order: Tensor) -> None:
    rows.copy_(rows[order.to(rows.device)].clone())


def _scales(count: int, generator: torch.Generator, spread: float) -> Tensor:
    return torch.exp(spread * torch.randn(count, generator=generator))


def _mlp_matrices(model: nn.Module) -> Sequence[str]:
    gated = [layout.mlp_of(block).up is not None for block in layout.blocks(model)]
    return ("gate", "up", "down") if any(gated) else ("gate", "down")


def _bias(model: nn.Module, rows: layout.Rows) -> Tensor | None:
    return bias_of(layout.blocks(model)[rows.block], rows.place)


def _stored(norm: nn.Module) -> Tensor:
    return next(iter(norm.parameters())).detach().float().cpu()


def _asked(norm: nn.Module, width: int) -> Tensor:
    return gains.gain_of(norm, width)

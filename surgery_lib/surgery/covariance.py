"""Covariance-aware surgery: each block reads the behaviour where what is to be spared is quiet.

A row moved by t p shifts its gate by t p . x. Asked for a given shift on the behaviour's mean input
m at the least mean square on inputs to spare, whose second moment is S, p is along S^-1 m: the
derivation is in docs/covariance.md. Everything is measured by forward passes, streamed: what is
kept of a block is S (width, width), m (width,), and the mean response of its rows (rows, width).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout
from surgery_lib.surgery import gains, region
from surgery_lib.surgery.edit import Surgery
from surgery_lib.surgery.effects import activation_of, check_dense, rows_of, slopes, written

Read = Literal["raw", "difference"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one module's inputs over `tokens`: `second` (width, width), `mean` (width,), float32."""

    second: Tensor
    mean: Tensor
    tokens: int


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """What is known of one block.

    `spared`: moments of the MLP's input, after its norm, over tokens to spare. `mean` (width,):
    mean input over behaviour tokens. `response` (rows, width): mean over behaviour tokens of
    act'(g_r) u_r x, the first-order answer of each row's unit to a move of its gate row. `after`
    (width,): what a norm behind the MLP (Gemma 2 and 3) multiplies its output by, the gain over the
    mean length of what it is given; None without one.
    """

    spared: Moments
    mean: Tensor
    response: Tensor
    after: Tensor | None = None

    def direction(self, ridge: float, read: Read = "raw") -> Tensor:
        """The read direction (width,), of norm 1: (S + ridge tr(S)/width I)^-1 m."""
        wanted = self.mean - self.spared.mean if read == "difference" else self.mean
        found = solve(self.spared.second, wanted, ridge)
        return found / found.norm().clamp_min(1e-30)


def solve(second: Tensor, vector: Tensor, ridge: float) -> Tensor:
    """(S + ridge tr(S)/width I)^-1 v for S (width, width) and v (width,) or (width, n).

    In float64: second moments of hidden states have condition numbers beyond float32's digits.
    """
    if not ridge > 0:
        raise UserError(f"ridge {ridge} must be above 0, or the inverse need not exist; raise it")
    exact = second.double()
    exact = exact + ridge * exact.diagonal().mean() * torch.eye(len(exact), dtype=torch.float64)
    wanted = vector.double().reshape(len(exact), -1)
    found = torch.cholesky_solve(wanted, torch.linalg.cholesky(exact))
    return found.reshape(vector.shape).float()


def input_moments(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str] | Sequence[list[int]],
    modules: Mapping[str, nn.Module],
    *,
    starts: Sequence[int] | None = None,
    max_tokens: int = 100,
) -> dict[str, Moments]:
    """Moments of every module's inputs over the texts' tokens, streamed, from one pass.

    `starts` (texts,) says where in each text its tokens begin to count; by default after the first
    token, whose states are unlike any other's. Padding never counts. Sums are float32 on the
    model's device within a batch and float64 across batches for the mean.

    Raises:
        UserError: No token is left.
    """
    first = torch.ones(len(texts), dtype=torch.long) if starts is None else torch.tensor(starts)
    seconds: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def visit(name: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
        x = inputs[counted(inputs, lengths, first[which])].float()
        if name not in seconds:
            seconds[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            means[name] = torch.zeros(x.shape[1], dtype=torch.float64)
        seconds[name].addmm_(x.t(), x)
        means[name] += x.sum(0).double().cpu()
        counts[name] += len(x)

    activations.read_inputs(model, tokenizer, texts, modules, visit, max_tokens=max_tokens)
    if not all(counts.values()):
        raise UserError("the texts have no token after the first; give longer texts")
    return {
        name: Moments(
            second=(seconds[name] / counts[name]).cpu(),
            mean=(means[name] / counts[name]).float(),
            tokens=counts[name],
        )
        for name in modules
    }


def counted(inputs: Tensor, lengths: Tensor, first: Tensor) -> Tensor:
    """Which positions (batch, longest) count: from `first` (batch,) to the text's end."""
    position = torch.arange(inputs.shape[1], device=inputs.device)
    return (position < lengths[:, None]) & (position >= first.to(inputs.device)[:, None])


def statistics(
    model: nn.Module,
    tokenizer: Any,
    behaviour: Sequence[str] | Sequence[list[int]],
    spared: Sequence[str],
    *,
    behaviour_starts: Sequence[int] | None = None,
    spared_starts: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    max_tokens: int = 100,
) -> list[BlockStatistics]:
    """Statistics of the blocks, one after the other, from one pass over all texts.

    `behaviour` are texts, or token ids (the model's own completions behind their prompts);
    `behaviour_starts` and `spared_starts` say from which token of each on positions count.
    `blocks` names some by number, where all at once would not fit into memory.

    Raises:
        UserError: Mixtures of experts, whose rows each see the tokens that the router gives them,
            and for texts without a token that counts.
    """
    found = list(layout.blocks(model))
    check_dense(model)
    numbers = range(len(found)) if blocks is None else blocks
    modules = {str(number): layout.mlp_module(found[number]) for number in numbers}
    moments = input_moments(
        model, tokenizer, spared, modules, starts=spared_starts, max_tokens=max_tokens
    )
    ones = [1] * len(behaviour) if behaviour_starts is None else list(behaviour_starts)
    first = torch.tensor(ones)
    responses: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    lengths_out = dict.fromkeys(modules, 0.0)

    @torch.no_grad()
    def visit(name: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
        x = inputs[counted(inputs, lengths, first[which])]
        slope = slopes(found[int(name)], activation_of(modules[name]), x).float()
        part = slope.t() @ x.float()
        responses[name] = responses[name] + part if name in responses else part
        total = x.double().sum(0).cpu()
        means[name] = means[name] + total if name in means else total
        counts[name] += len(x)
        if gains.norm_after(found[int(name)]) is not None:
            out = written(found[int(name)], activation_of(modules[name]), x).float()
            lengths_out[name] += float(out.square().mean(-1).sqrt().sum())

    activations.read_inputs(model, tokenizer, behaviour, modules, visit, max_tokens=max_tokens)
    if not all(counts.values()):
        raise UserError("the behaviour's texts have no token after the first; give longer texts")
    result = [
        BlockStatistics(
            spared=moments[name],
            mean=(means[name] / counts[name]).float(),
            response=(responses[name] / counts[name]).cpu(),
            after=_after(found[int(name)], lengths_out[name] / counts[name]),
        )
        for name in modules
    ]
    for one in result:
        if not (torch.isfinite(one.spared.second).all() and torch.isfinite(one.response).all()):
            raise UserError(
                "the model gives inputs that are not finite; load it in float32 or bfloat16"
            )
    return result


def _after(block: nn.Module, length: float) -> Tensor | None:
    norm = gains.norm_after(block)
    width = next(iter(norm.parameters())).numel() if norm is not None else 0
    return None if norm is None else gains.gain_of(norm, width) / max(length, 1e-30)


@torch.no_grad()
def scores(
    model: nn.Module, blocks: Sequence[BlockStatistics], directions: Tensor, write: Tensor
) -> Tensor:
    """First-order effect of moving each gate row along its block's direction: (rows,), float32.

    (response_r . p_l) (d_r . w) with d_r the row's column of the down projection and w the unit
    write direction: how far the row's output moves along w, on average over behaviour tokens,
    behind the block's norm where there is one. The most negative rows push against the behaviour.
    """
    region.check_width(write, layout.hidden_width(model))
    unit = write.float() / write.float().norm()
    parts = []
    for block, one, direction in zip(layout.blocks(model), blocks, directions, strict=True):
        down = rows_of(block, layout.mlp_of(block).down, len(unit)).float()
        aim = unit if one.after is None else unit * one.after
        parts.append((one.response @ direction) * (down @ aim.to(down.device)).cpu())
    return torch.cat(parts)


def plan(
    model: nn.Module,
    blocks: Sequence[BlockStatistics],
    write: Tensor,
    *,
    strength: float,
    k: int | float,
    ridge: float,
    read: Read = "raw",
    select: region.Select = "opposed",
    row_norm: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> Surgery:
    """The edit: the K most negative rows over all blocks, each moved along its block's direction.

    `strength` is in mean row norms, `write` (width,) the behaviour's direction in the residual
    stream, `ridge` in units of the mean diagonal of S.
    """
    directions = torch.stack([one.direction(ridge, read) for one in blocks])
    rows = region.select(scores(model, blocks, directions, write), k, select=select)
    return Surgery.build(model, rows, directions, strength, row_norm=row_norm, about=about)


def leverage(
    blocks: Sequence[BlockStatistics], shared: Tensor, ridge: float
) -> dict[str, list[float]]:
    """What a step moves gates on the behaviour for what it moves them on inputs to spare, a block.

    m . p / sqrt(p' S p): the mean shift on behaviour tokens over the root mean square on spared
    ones, for p of the block's own covariance, for its plain mean, and for one direction `shared`
    (width,) by all, whichever its sign.
    """
    found: dict[str, list[float]] = {"own covariance": [], "plain mean": [], "one direction": []}
    for one in blocks:
        choices = (one.direction(ridge), one.mean, shared.float())
        for name, p in zip(found, choices, strict=True):
            spared = float((p @ one.spared.second @ p).clamp_min(1e-30).sqrt())
            found[name].append(abs(float(one.mean @ p)) / spared)
    return found

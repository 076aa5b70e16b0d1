"""Steer2Edit (Sun 2026): a steering vector spread over the few components that carry it.

For the maps W that end attention and MLP, v is the unit difference of their mean outputs, texts
without the behaviour less texts with it. A component i is the block of W's columns that reads one
attention head, or the column that reads one MLP unit. With x_i its mean input over both groups,

    W_i <- W_i + lambda_i v k_i^T,  k_i = W_i^T v / |W_i^T v|,  g_i = cos(v, W_i x_i),
    lambda_i = sign(g_i) max(|g_i| - rho a, 0) / (rho (1 - a)),

the solution of an elastic net with weight rho and share a of its first norm: only components that
write nearly along v, or against it, are edited. The authors choose rho for each model anew (.16 to
.24, or .42 to .50, for heads); so rho is in units of the largest |g| of its kind here. Strength 1
is the published edit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.models import activations, layout
from surgery_lib.surgery.covariance import counted

RHO, SHARE = 0.7, 0.8


@dataclass(frozen=True, eq=False)
class Components:
    """Of one map: v `write` (outputs,), k_i `reads` (components, inputs each), g_i `gains`."""

    write: Tensor
    reads: Tensor
    gains: Tensor


@dataclass(frozen=True, eq=False)
class FittedSteer2Edit(Read):
    """`heads` and `units`: the components of every block's two maps."""

    heads: list[Components]
    units: list[Components]

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float, **knobs: Any) -> Iterator[Any]:
        """Every block's two maps, each with a matrix of rank one more, as `edits` says."""
        weights = [tools.writes(module) for module in _maps(model)] if strength else []
        with tools.restored(weights):
            for weight, (one, factors) in zip(weights, self.edits(**knobs), strict=False):
                read = (strength * factors[:, None] * one.reads).flatten()
                weight.copy_(weight.float() + torch.outer(one.write, read).to(weight.device))
            yield model

    def edits(
        self, *, rho_heads: float = RHO, rho_units: float = RHO, share: float = SHARE
    ) -> list[tuple[Components, Tensor]]:
        """Every map's components, heads first, and their lambda_i (components,)."""
        found = []
        for kind, rho in ((self.heads, rho_heads), (self.units, rho_units)):
            largest = max(float(one.gains.abs().max()) for one in kind)
            found += [(one, elastic(one.gains, rho * largest, share)) for one in kind]
        return found

    def cost(self, **knobs: Any) -> Cost:
        """The columns of the components that are edited."""
        edits = self.edits(**{key: value for key, value in knobs.items() if key != "strength"})
        columns = [int((factors != 0).sum()) * one.reads.shape[1] for one, factors in edits]
        return self.price(sum(columns) * len(self.heads[0].write))


class Steer2Edit(Method[FittedSteer2Edit], name="steer2edit", kind="weights"):
    """Steer2Edit on heads and MLP units of all blocks."""

    # The authors search rho of both kinds and the share; where rho a reaches 1, nothing is edited.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(1.0, high=8.0),
        "rho_heads": SearchRange(RHO, low=0.3, high=1.0),
        "rho_units": SearchRange(RHO, low=0.3, high=1.0),
        "share": SearchRange(SHARE, low=0.4, high=0.95),
    }

    def learn(self, lesson: Lesson) -> FittedSteer2Edit:
        """Mean inputs of all maps from one pass. UserError for mixtures of experts."""
        maps = _maps(lesson.model)
        means, tokens = _mean_inputs(lesson, maps)
        count = len(maps) // 2
        heads = lesson.model.config.get_text_config().num_attention_heads
        found = []
        for number, weight in enumerate(map(tools.writes, maps)):
            parts = heads if number < count else weight.shape[1]
            found.append(components(weight.cpu(), *means[number], parts))
        return FittedSteer2Edit(
            heads=found[:count],
            units=found[count:],
            labels=len(lesson.data.texts),
            tokens=tokens,
        )


def components(weight: Tensor, without: Tensor, with_it: Tensor, parts: int) -> Components:
    """From W (outputs, inputs), in equal parts, and mean inputs (inputs,) of both groups."""
    exact = weight.double()
    write = exact @ (without - with_it).double()  # a bias does not differ between the groups
    write = write / write.norm().clamp_min(1e-30)
    reads = (exact.t() @ write).unflatten(0, (parts, -1))
    mean = ((without + with_it) / 2).double().unflatten(0, (parts, -1))
    written = torch.einsum("opi,pi->po", exact.unflatten(1, (parts, -1)), mean)
    return Components(
        write=write.float(),
        reads=(reads / reads.norm(dim=1, keepdim=True).clamp_min(1e-30)).float(),
        gains=(written @ write / written.norm(dim=1).clamp_min(1e-30)).float(),
    )


def elastic(gains: Tensor, rho: float, share: float) -> Tensor:
    """lambda_i of g_i, rho and a, all as published."""
    return gains.sign() * (gains.abs() - rho * share).clamp_min(0) / max(rho * (1 - share), 1e-30)


def _maps(model: nn.Module) -> list[nn.Module]:
    """What ends attention, block by block, and then what ends the MLP."""
    blocks = layout.blocks(model)
    return [tools.attention_output(one) for one in blocks] + [tools.mlp_output(o) for o in blocks]


def _mean_inputs(lesson: Lesson, maps: list[nn.Module]) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Of every map the mean input (inputs,) without and with the behaviour, and the tokens read.

    A text counts with the mean over its tokens after the first, whatever its length.
    """
    labels = torch.as_tensor(lesson.data.labels)
    sums = [torch.zeros(2, tools.writes(one).shape[1], dtype=torch.float64) for one in maps]

    def visit(name: str, inputs: Tensor, lengths: Tensor, which: Tensor) -> None:
        # A text of one token has no other.
        counts = counted(inputs, lengths, (lengths > 1).long()).float()
        pooled = torch.bmm((counts / counts.sum(1, keepdim=True))[:, None], inputs.float())[:, 0]
        sums[int(name)].index_add_(0, labels[which], pooled.double().cpu())

    modules = {str(number): module for number, module in enumerate(maps)}
    tokens = activations.read_inputs(
        lesson.model, lesson.tokenizer, lesson.data.texts, modules, visit
    )
    sizes = labels.bincount(minlength=2)
    return [(one[0] / sizes[0], one[1] / sizes[1]) for one in sums], tokens

"""What several methods need: where blocks write, hooks that go away, weights that come back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery_lib.baselines.base import SearchRange
from surgery_lib.errors import UserError
from surgery_lib.models import layout

# Where each architecture keeps the linear map by which attention writes to the residual stream.
ATTENTION_OUTPUTS = ("self_attn.o_proj", "attn.c_proj", "attention.dense", "self_attn.dense")

DEPTH = SearchRange(0.6, low=0.1, high=0.9)


def block_at(model: nn.Module, depth: float) -> int:
    """The block at a fraction of the depth whose input is steered: 1 to blocks - 1."""
    count = len(layout.blocks(model))
    return min(max(round(depth * count), 1), count - 1)


def layer_at(model: nn.Module, depth: float) -> int:
    """The layer (index of hidden_states) at a fraction of the depth: 0 to blocks."""
    count = len(layout.blocks(model))
    return min(max(round(depth * count), 0), count)


def attention_output(block: nn.Module) -> nn.Module:
    """The linear map that ends a block's attention. UserError where none is known."""
    for path in ATTENTION_OUTPUTS:
        if layout.has_parameter(block, f"{path}.weight"):
            return block.get_submodule(path)
    raise UserError(
        f"{type(block).__name__}: no attention output found (looked for "
        f"{', '.join(ATTENTION_OUTPUTS)}); add it to surgery_lib/baselines/tools.py"
    )


def mlp_output(block: nn.Module) -> nn.Module:
    """The linear map that ends a block's MLP. UserError for mixtures of experts."""
    place = layout.mlp_of(block).down
    if place.of_experts:
        raise UserError(
            f"{type(block).__name__}: this method needs one down projection a block, and a mixture "
            "of experts has many; use a method that hooks whole blocks"
        )
    return block.get_submodule(place.path.removesuffix(".weight"))


def writes(module: nn.Module) -> Tensor:
    """The weight of a linear map as (outputs, inputs), a view: GPT-2's Conv1D is the other way."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight.t() if isinstance(module, Conv1D) else weight


def mean_difference(states: Tensor, labels: Sequence[int]) -> Tensor:
    """Mean state with the behaviour less mean state without: (layers, width), from float64."""
    y = torch.as_tensor(labels)
    exact = states.double()
    return (exact[y == 1].mean(0) - exact[y == 0].mean(0)).float()


def adder(shift: Tensor) -> Callable[[Tensor], Tensor]:
    """What adds a vector to states (..., width), for a hook."""
    return lambda states: states + shift.to(states)


@contextmanager
def hooked(handles: Sequence[Any]) -> Iterator[None]:
    """Take hooks off again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Any:
    """Hook that changes the first input of a module."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Any:
    """Hook that changes the first output of a module."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return module.register_forward_hook(hook)


@contextmanager
def biased(module: nn.Module, vector: Tensor) -> Iterator[None]:
    """Add a vector (outputs,) to a linear map's bias, making one where there is none."""
    before: Any = module.bias
    vector = vector.detach().to(module.weight.device)  # type: ignore[arg-type]
    total = vector if before is None else before.data.float() + vector
    module.bias = nn.Parameter(total.to(module.weight.dtype), requires_grad=False)  # type: ignore
    try:
        yield
    finally:
        module.bias = before


@contextmanager
def all_biased(pairs: Sequence[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    """`biased` for several maps at once."""
    with ExitStack() as stack:
        for module, vector in pairs:
            stack.enter_context(biased(module, vector))
        yield


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Copy what is about to be edited, and write every bit back afterwards."""
    kept = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)

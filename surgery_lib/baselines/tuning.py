"""Which weights are trained, and the reversible change that training leaves.

Training happens on the model itself and is taken back: what remains is a `Delta`, the change of
each weight, which can be added at any strength and undone bit for bit.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.errors import UserError


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (peft); `targets` names the modules that get them, by suffix."""

    rank: int = 8
    alpha: int = 16
    targets: str | tuple[str, ...] = "all-linear"


# What is trained: every weight, low-rank adapters, or the weights of these names.
Which = Literal["full"] | Lora | Collection[str]


@dataclass(frozen=True)
class Delta:
    """The change of some weights: parameter name -> tensor of the parameter's shape, float32.

    `losses` are those of the training that made it, step by step.
    """

    tensors: Mapping[str, Tensor]
    losses: Sequence[float] = ()

    @contextmanager
    def applied(self, model: nn.Module, scale: float) -> Iterator[nn.Module]:
        """The model with `scale` times the change; every bit restored after.

        Scale 0 touches nothing. UserError where the model lacks one of the weights.
        """
        kept = self._add(model, scale) if scale else {}
        try:
            yield model
        finally:
            for name, before in kept.items():
                model.get_parameter(name).data.copy_(before)

    def masked(self, masks: Mapping[str, Tensor]) -> "Delta":
        """The change where its mask is true and zero elsewhere; weights without a mask go."""
        kept = {name: torch.where(mask, self.tensors[name], 0) for name, mask in masks.items()}
        return Delta(kept, self.losses)

    @property
    def touched(self) -> int:
        """How many numbers of the model change."""
        return sum(int(tensor.count_nonzero()) for tensor in self.tensors.values())

    def _add(self, model: nn.Module, scale: float) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        for name, tensor in self.tensors.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise UserError(
                    f"the model has no {name} of shape {tuple(tensor.shape)}; "
                    "fit the method on this model"
                )
        kept = {}
        for name, tensor in self.tensors.items():
            weight = parameters[name].data
            kept[name] = weight.clone()
            step = (scale * tensor).to(weight.device)
            # Rounded once, from float32; where nothing is added, not even -0 becomes 0.
            changed = (weight.float() + step).to(weight.dtype)
            weight.copy_(torch.where(step != 0, changed, weight))
        return kept


@dataclass(frozen=True)
class Tuned:
    """A model open for training: what gradients reach, and the change that it amounts to.

    `model` is what to call: with adapters a PeftModel, whose `disable_adapter` gives the original.
    """

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    change: Callable[[], dict[str, Tensor]]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gradients are recorded, but reach no weight; afterwards flags are as they were.

    The model is in evaluation mode throughout: dropout would make two fits of one seed differ.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = model.training
    model.eval()
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


@contextmanager
def tuned(model: nn.Module, which: Which, seed: int = 0) -> Iterator[Tuned]:
    """Open a part of the model for training; afterwards values and flags are as they were."""
    with frozen(model), _opened(model, which, seed) as part:
        yield part


def _opened(model: PreTrainedModel, which: Which, seed: int) -> AbstractContextManager[Tuned]:
    if isinstance(which, Lora):
        return _adapters(model, which, seed)
    return _weights(model, None if which == "full" else which)


@contextmanager
def _weights(model: nn.Module, names: Collection[str] | None) -> Iterator[Tuned]:
    chosen = {n: p for n, p in model.named_parameters() if names is None or n in names}
    if not chosen:
        raise UserError("none of the weights to train are in this model; check their names")
    before = {name: parameter.detach().clone() for name, parameter in chosen.items()}

    def change() -> dict[str, Tensor]:
        return {n: p.detach().float() - before[n].float() for n, p in chosen.items()}

    try:
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        yield Tuned(model, chosen, change)
    finally:
        for name, parameter in chosen.items():
            parameter.data.copy_(before[name])


@contextmanager
def _adapters(model: PreTrainedModel, lora: Lora, seed: int) -> Iterator[Tuned]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    targets = list(lora.targets) if isinstance(lora.targets, tuple) else lora.targets
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # What peft warns of here (names of transformers that will change, Conv1D read as such) is
        # nothing that a user could act on.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as error:
            raise UserError(
                f"no adapters fit this model ({error}); name its modules in Lora.targets"
            ) from error
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]

    @torch.no_grad()
    def change() -> dict[str, Tensor]:
        found = {}
        for layer in layers:
            # Experts are one parameter for all, which peft wraps by the parameter's name.
            parameter = getattr(layer, "parameter_name", "weight")
            name = names[id(getattr(layer.get_base_layer(), parameter))]
            found[name] = layer.get_delta_weight("default").float()
        return found

    try:
        yield Tuned(
            adapted, {n: p for n, p in adapted.named_parameters() if p.requires_grad}, change
        )
    finally:
        adapted.unload()
        # Some versions of peft leave this behind, and warn of a second adapter at the next fit.
        vars(model).pop("peft_config", None)

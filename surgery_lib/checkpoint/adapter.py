"""A surgery as a LoRA adapter: the edit is exactly a matrix of rank one in every weight it touches.

The step of row r is coefficient_r times the direction of its block, so B = the coefficients,
scattered over the rows, and A = the direction; several surgeries stack, one rank each. Anything
that serves LoRA can then serve a base model and its edited versions side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.models.load import CONFIG_FAULTS
from surgery_lib.surgery import Surgery
from surgery_lib.surgery.checks import check_edit

PREFIX = "base_model.model."
Factors = dict[str, tuple[layout.Place, Tensor, Tensor]]


def export_adapter(
    edits: Surgery | Sequence[Surgery],
    model: nn.Module | Path | str,
    folder: Path | str,
    *,
    base: str | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors, for `peft`; returns the folder.

    `model` is the model, or a folder with its config.json: no weights are needed, only names and
    shapes. `base` is what the adapter names as its base model. All edits are taken against the
    unedited base: where edits overlap, their steps are added.

    Raises:
        UserError: There is no edit, or one is for another shape of model or width.
    """
    model = model if isinstance(model, nn.Module) else skeleton(model)
    factors = low_rank(edits, model)
    # peft takes a module called gate_proj in a mixture of experts for the experts' own, so there
    # every weight is named as a parameter.
    mixture = any(rows.place.stacked for rows in layout.weight_rows(model, editable=False))
    rank = next(iter(factors.values()))[1].shape[1]
    modules = {name: name.rpartition(".")[0] for name in factors}
    if len(set(modules.values())) < len(factors):
        raise UserError(
            "these surgeries edit two matrices of the same experts, which one adapter cannot hold; "
            "export an adapter for each matrix"
        )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or getattr(model, "name_or_path", "") or None,
        "r": rank,
        "lora_alpha": rank,  # scaling is alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(place.transposed for place, *_ in factors.values()),
        "inference_mode": True,
        # Empty, not absent: where it is left out, peft chooses some.
        "target_modules": [] if mixture else list(modules.values()),
        "target_parameters": list(modules) if mixture else None,
    }
    tensors = {}
    for name, (place, a, b) in factors.items():
        module = PREFIX + modules[name]
        tensors[f"{module}.lora_A.weight"] = _flat_a(a) if place.stacked else a[0]
        tensors[f"{module}.lora_B.weight"] = _flat_b(b) if place.stacked else b[0]
    folder = Path(folder)
    files.write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    files.write_json(folder / "adapter_config.json", config)
    return folder


def low_rank(edits: Surgery | Sequence[Surgery], model: nn.Module) -> Factors:
    """What the edits add, by parameter, and where it lies in it.

    A is (experts, ranks, in), B (experts, out, ranks). `model` may be without weights. UserError
    where there is no edit, or one is for another shape.
    """
    edits = [edits] if isinstance(edits, Surgery) else list(edits)
    if not edits:
        raise UserError("there is no surgery to export; give at least one")
    factors: Factors = {}
    for rank, edit in enumerate(edits):
        _add(factors, model, edit, rank, len(edits))
    if not factors:
        raise UserError("this surgery moves no row, so there is nothing to export; find another")
    return factors


def _add(
    factors: Factors,
    model: nn.Module,
    edit: Surgery,
    rank: int,
    ranks: int,
) -> None:
    """Fill one rank of A (experts, ranks, in) and B (experts, out, ranks) where an edit falls."""
    found = layout.weight_rows(model, edit.matrix, editable=False)
    sizes = [len(one.weight) for one in found]
    check_edit(edit, sum(sizes), layout.hidden_width(model), len(layout.blocks(model)))
    for number, local, part in layout.split_by_matrix(sizes, edit.rows):
        rows = found[number]
        place = rows.place
        shape = model.get_parameter(rows.parameter).shape
        experts = shape[0] if place.stacked else 1
        out_size, in_size = reversed(shape[-2:]) if place.transposed else shape[-2:]
        if rows.parameter not in factors:
            blank = torch.zeros(experts, ranks, in_size), torch.zeros(experts, out_size, ranks)
            factors[rows.parameter] = (place, *blank)
        _, a, b = factors[rows.parameter]
        expert = (rows.expert or 0) if place.stacked else 0
        coefficients, direction = edit.coefficients[part], edit.direction_of(rows.block)
        if place.writes:  # the rows are columns of the weight
            a[expert, rank, local] = coefficients
            b[expert, :, rank] = direction
        else:
            share = local + place.part[0] * (out_size // place.part[1])
            a[expert, rank] = direction
            b[expert, share, rank] = coefficients


def _flat_a(a: Tensor) -> Tensor:
    # peft keeps the experts of one parameter in one pair: (experts · ranks, in), experts outermost.
    return a.flatten(0, 1)


def _flat_b(b: Tensor) -> Tensor:
    # (out, ranks · experts), ranks outermost.
    return b.permute(1, 2, 0).flatten(1)


def skeleton(folder: Path | str) -> Any:
    """A model without weights, from its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give a model or a checkpoint's folder")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except CONFIG_FAULTS as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} has no usable config.json: {detail}") from error

"""What a model's files and weights must be, before and after they are loaded."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.errors import UserError

MOST_BLOCKS = 10_000  # of a model; more is a damaged configuration


def check_files(folder: Path) -> None:
    """Raise UserError where the folder is no model's, lacks a shard, or a shard is truncated."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the folder of a saved model")
    check_config(folder)
    index = folder / "model.safetensors.index.json"
    shards = indexed(index) if index.is_file() else ["model.safetensors"]
    seen: set[str] = set()
    for shard in shards:
        path = folder / shard
        if not path.is_file():
            raise UserError(f"{path} is missing; save or download the model again as safetensors")
        try:
            with safe_open(path, framework="pt") as handle:
                names = set(handle.keys())
            if twice := sorted(seen & names):
                raise UserError(
                    f"{path} holds {twice[0]}, which an earlier shard holds too; save the model "
                    "again with save_pretrained"
                )
            seen |= names
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is corrupt or truncated ({error}); download or save it again"
            ) from error


def check_config(folder: Path) -> None:
    """UserError for a configuration that is none, or whose sizes no model has."""
    config = files.read_json(folder / "config.json")
    inner = config.get("text_config", config) if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        raise UserError(f"{folder / 'config.json'} is no model's configuration; fetch it again")
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if name in inner and not (type(inner[name]) is int and 0 < inner[name] <= MOST_BLOCKS):
            raise UserError(
                f"{folder / 'config.json'}: {name} = {str(inner[name])[:50]}, which no model has; "
                "fetch it again"
            )


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raise UserError that names the first weight with a NaN or an infinity."""
    for key, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() < 2 or parameter.is_meta:
            continue
        low, high = torch.aminmax(parameter.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise UserError(
                f"{name}: {key} holds NaN or infinity; restore the model from its source"
            )


def indexed(path: Path) -> list[str]:
    """The shards that an index names; UserError where it is damaged or names other folders."""
    document = files.read_json(path)
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise UserError(f"{path} is no index of shards; fetch it again")
    names = sorted(set(places.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{path} names shards in other folders; fetch it again")
    return names

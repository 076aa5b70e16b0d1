"""A surgery for llama.cpp and Ollama: as a GGUF adapter, or as the edited model's own GGUF file.

The edit is a matrix of rank one in every weight it touches (`adapter`), which llama.cpp reads as a
LoRA adapter: tensors `blk.N.<name>.weight.lora_a` (rank, in) and `.lora_b` (out, rank), scaled by
`adapter.lora.alpha` over the rank. In the file of a whole model the touched tensors are taken out
of their quantization, moved and stored as floats; every other tensor and all metadata are copied.
Gate, up, down and o keep the order of their rows in GGUF; q and k do not, and experts are stacked.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from surgery_lib import files
from surgery_lib.checkpoint import edit as on_disk
from surgery_lib.checkpoint.adapter import low_rank, skeleton
from surgery_lib.checkpoint.shards import Checkpoint
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import Surgery

MATRICES = ("gate", "up", "down", "o", "v")
# Names of architectures that llama.cpp files under another one.
RENAMED = {"mistral": "llama", "gemma3text": "gemma3"}
Stored = Literal["f16", "f32"]
FLOATS = {"F16": "float16", "F32": "float32"}
PATCH = "model_surgery.fingerprint"  # says in an edited file which model was edited


def export_adapter(
    edits: Surgery | Sequence[Surgery], model: nn.Module | Path | str, path: Path | str
) -> Path:
    """Write the edits as a GGUF adapter for `llama-server --lora`; returns its path.

    `model` is the model, or a folder with its config.json. UserError where there is no edit, one is
    for another shape of model, or its matrix lies otherwise in GGUF.
    """
    from gguf import GGUFWriter

    given = [edits] if isinstance(edits, Surgery) else list(edits)
    model = model if isinstance(model, nn.Module) else skeleton(model)
    steps = _factors(given, model)
    path = Path(path)
    with files.atomic(path) as temporary:
        writer = GGUFWriter(temporary, architecture(model))
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(len(given)))
        writer.add_string(PATCH, given[-1].fingerprint)
        for name, (a, b) in steps.items():
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def export_model(
    source: Path,
    checkpoint: Path,
    edit: Surgery | None,
    path: Path | str,
    *,
    stored: Stored = "f16",
    everything: bool = False,
) -> Path:
    """Write the edited model as GGUF, from the GGUF file it came as; returns its path.

    Args:
        source: The unedited model's own GGUF file.
        checkpoint: What transformers made of that file, which the surgery was found on.
        edit: The surgery; None copies.
        stored: The type of the tensors that the edit touches.
        everything: Take every quantized tensor out of its quantization: larger, and no engine
            rounds what it computes with.

    Raises:
        UserError: The surgery was made for another model, the file lacks a tensor that it touches,
            or a moved row is too large for `stored`.
    """
    from gguf import GGUFReader, GGUFWriter

    if stored not in get_args(Stored):
        raise UserError(f"stored={stored!r} is no type here; use f16 or f32")
    path = Path(path)
    if path.exists() and path.samefile(source):
        raise UserError(f"{path} is the unedited model's own file; choose another name")
    steps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if edit is not None:
        held = Checkpoint.open(checkpoint)
        if on_disk.fingerprint(held, edit.rows, edit.matrix) != edit.fingerprint:
            raise UserError("this surgery was made for another model; give the one it was found on")
        steps = _factors([edit], skeleton(checkpoint))
    reader = GGUFReader(source)
    missing = sorted(set(steps) - {tensor.name for tensor in reader.tensors})
    if missing:
        raise UserError(f"{source.name} has no {missing[0]}; give the file the model came as")
    with files.atomic(path) as temporary:
        writer = GGUFWriter(temporary, str(reader.get_field("general.architecture").contents()))
        writer.data_alignment = reader.alignment
        _copy_metadata(reader, writer)
        if edit is not None:
            writer.add_string(PATCH, edit.fingerprint)
        for tensor in reader.tensors:
            _announce(writer, tensor, _kind(tensor, tensor.name in steps, stored, everything))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:  # one at a time in memory
            kind = _kind(tensor, tensor.name in steps, stored, everything)
            data = _moved(tensor, steps.get(tensor.name), kind)
            writer.write_tensor_data(data, tensor_endianess=reader.endianess)
        writer.close()
    return path


def architecture(model: nn.Module) -> str:
    """What llama.cpp calls the model's architecture. UserError where it knows none."""
    from gguf.constants import MODEL_ARCH_NAMES

    kind = str(getattr(model.config, "model_type", "")).replace("_", "").replace("-", "")
    known = {name.replace("-", "").replace("_", ""): name for name in MODEL_ARCH_NAMES.values()}
    name = known.get(RENAMED.get(kind, kind))
    if name is None:
        raise UserError(f"llama.cpp has no architecture {kind!r}; export a checkpoint instead")
    return name


def _factors(
    edits: Sequence[Surgery], model: nn.Module
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A (ranks, in) and B (out, ranks), float32, by the tensor's name in GGUF."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from gguf.constants import MODEL_ARCH_NAMES

    for edit in edits:
        if edit.matrix not in MATRICES:
            raise UserError(
                f"the rows of {edit.matrix} lie in another order in GGUF; export a checkpoint and "
                "convert it with llama.cpp's convert_hf_to_gguf.py"
            )
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    kind = MODEL_ARCH(numbers[architecture(model)])
    names = get_tensor_name_map(kind, len(layout.blocks(model)))
    found = {}
    for parameter, (place, a, b) in low_rank(edits, model).items():
        name = names.get_name(parameter, try_suffixes=(".weight",))
        if place.of_experts or name is None:
            raise UserError(
                f"{parameter} has no place of its own in GGUF; export a checkpoint and convert it "
                "with llama.cpp's convert_hf_to_gguf.py"
            )
        found[name] = _array(a[0]), _array(b[0])
    return found


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().contiguous().numpy()
    return array


def _copy_metadata(reader: Any, writer: Any) -> None:
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue  # the writer's own
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def _kind(tensor: Any, touched: bool, stored: Stored, everything: bool) -> Any:
    """The type in which a tensor is stored: its own, or floats."""
    from gguf import GGMLQuantizationType as Type

    if touched or (everything and tensor.tensor_type not in (Type.F32, Type.F16, Type.BF16)):
        return Type.F32 if stored == "f32" else Type.F16
    return tensor.tensor_type


def _announce(writer: Any, tensor: Any, kind: Any) -> None:
    if kind == tensor.tensor_type:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, kind)
        return
    shape = tuple(int(size) for size in reversed(tensor.shape))  # GGUF names the columns first
    dtype = np.dtype(FLOATS[kind.name])
    writer.add_tensor_info(tensor.name, shape, dtype, math.prod(shape) * dtype.itemsize, kind)


def _moved(tensor: Any, step: tuple[np.ndarray, np.ndarray] | None, kind: Any) -> np.ndarray:
    """A tensor's data as stored, or (out, in) after its step, as numbers of type `kind`."""
    from gguf.quants import dequantize

    if step is None and kind == tensor.tensor_type:
        data: np.ndarray = tensor.data
        return data
    plain = dequantize(tensor.data, tensor.tensor_type)
    if step is not None:
        plain = plain + step[1] @ step[0]
    with np.errstate(over="ignore"):  # said below, by name
        moved: np.ndarray = plain.astype(FLOATS[kind.name])
    if not np.isfinite(moved).all():
        raise UserError(
            f"{tensor.name}: the edit makes numbers too large for {kind.name}; store f32, or find "
            "a gentler edit"
        )
    return moved

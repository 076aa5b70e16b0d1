"""Loading models and tokenizers from the hub, the mirror, a folder or the repository itself.

Only safetensors are read and no remote code runs unless it is asked for. A hub id is first turned
into a local snapshot, so that the model, its tokenizer and the recorded revision are one state.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from surgery_lib.errors import UserError
from surgery_lib.files import bundled, fingerprint
from surgery_lib.models import dtypes, gguf, packages
from surgery_lib.models.check import check_files, check_finite
from surgery_lib.models.hub import answering

DATA = bundled("data")
EMBEDDED = {
    "patient": DATA / "patient" / "model",
    "classifier": DATA / "patient" / "classifier",
}
DTYPES: dict[str, torch.dtype | Literal["auto"]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
}
# What transformers raises over files that are broken or need what is not allowed here.
CONFIG_FAULTS = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ImportError, RuntimeError),
    *(OverflowError, StrictDataclassError),
)
LONGEST_NAME = 4096
SNAPSHOT = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
NOT_IN_SNAPSHOT = ["consolidated*", "original/*", "onnx/*", "openvino/*"]


def mirror() -> Path | None:
    """The folder named by SURGERY_MIRROR; UserError where it is set but is no folder."""
    name = os.environ.get("SURGERY_MIRROR")
    if not name:
        return None
    if not Path(name).is_dir():
        raise UserError(f"SURGERY_MIRROR={name} is not a folder; correct it or unset it")
    return Path(name)


def resolve(name: str, kind: Literal["models", "datasets"] = "models") -> Path | str:
    """Where `name` lies: a folder on this machine, or the hub id itself where it has to be fetched.

    Looked for in this order: `embedded:NAME` in the repository, `package:NAME` among the installed
    packages, a local path, the mirror's `<kind>/<org>--<name>`. A GGUF file, or a folder with one,
    stands for its conversion. UserError for a path that does not exist.
    """
    prefix, _, rest = str(name).partition(":")
    if prefix == "embedded":
        if rest not in EMBEDDED:
            raise UserError(f"unknown model {name!r}; embedded are {', '.join(EMBEDDED)}")
        if not EMBEDDED[rest].is_dir():
            raise UserError(f"{EMBEDDED[rest]} does not exist; run notebook 00 to train the {rest}")
        return EMBEDDED[rest]
    if not isinstance(name, str) or not 0 < len(name) < LONGEST_NAME or "\0" in name:
        raise UserError(f"{str(name)[:60]!r} is no model; give an existing folder or a hub id")
    if prefix == "package" and kind == "models":
        return packages.resolve(rest)
    try:
        path = Path(name).expanduser()
        if path.exists():
            inside = gguf.inside(path) if kind == "models" else None
            return gguf.own(inside) if inside is not None else path
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} is no path ({error}); give a folder or a hub id") from error
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{name} does not exist; give an existing folder or a hub id (org/name)")
    root = mirror()
    if root is not None:
        mirrored = root / kind / name.replace("/", "--")
        if mirrored.is_dir():
            return mirrored
    return name


def snapshot(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The folder that holds a model's configuration, tokenizer and weights, downloaded if need be.

    UserError says what to do where there is no such model, no access or no network.
    """
    place = resolve(name)
    if isinstance(place, Path):
        return place
    patterns = [*SNAPSHOT, "*.py"] if trust_remote_code else SNAPSHOT
    try:
        with answering():
            folder = snapshot_download(
                place, revision=revision, allow_patterns=patterns, ignore_patterns=NOT_IN_SNAPSHOT
            )
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is neither a folder, nor in SURGERY_MIRROR, nor in the hub's cache, and the "
            "hub cannot be reached; check the name, the network, or set SURGERY_MIRROR"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"the hub has no {name} (revision {revision or 'main'}) open to you; check the name, "
            "accept its licence on the hub and log in with `hf auth login`"
        ) from error
    return Path(folder)


def _placement(device: str) -> str | None:
    """The device map for `device`, None for the CPU; UserError where there is no such device."""
    if device == "auto":
        if torch.cuda.is_available():
            return "auto"
        return "mps" if torch.backends.mps.is_available() else None
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; use cpu, cuda, cuda:1, mps or auto") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch sees no GPU here; use cpu or auto")
    return None if kind == "cpu" else device


def _load(
    family: Any,
    name: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    quantization: str | None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    placement = _placement(device)
    options: dict[str, Any] = {"device_map": placement}
    if quantization is not None:
        if quantization not in QUANTIZATION:
            raise UserError(f"unknown quantization {quantization!r}; use 4bit, 8bit or nothing")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                f"{quantization} loading needs bitsandbytes; "
                "pip install 'model-surgery[quantization]', or load without quantization"
            )
        options["quantization_config"] = BitsAndBytesConfig(**QUANTIZATION[quantization])
    folder = snapshot(name, revision=revision, trust_remote_code=trust_remote_code)
    check_files(folder)
    chosen = dtypes.automatic(folder, placement) if dtype == "auto" else dtype
    options["dtype"] = DTYPES[chosen]
    try:
        model, report = family.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except (*CONFIG_FAULTS, SafetensorError) as error:
        raise UserError(f"{name} could not be loaded: {_one_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{name} lacks {len(missing)} weights that its architecture has, {missing[0]} first; "
            "use the checkpoint that its config.json belongs to"
        )
    if quantization is None:
        check_finite(model, name)
    model.eval().requires_grad_(False)
    model.surgery_revision = _revision(folder, name)
    return model, load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, ready to read and generate, with its tokenizer.

    Args:
        name: Hub id, folder, GGUF file, `package:<distribution>/<file>` or `embedded:patient`; the
            mirror is used where it holds the id.
        revision: Branch, tag or commit on the hub.
        dtype: float32, bfloat16, float16, or auto: the checkpoint's own, but for a large model on
            a processor, which is bfloat16 where that is fast and float32 elsewhere.
        device: A torch device, or auto to spread the model over the GPUs there are.
        quantization: 4bit or 8bit for stages that only read weights; such a model cannot be edited.

    Raises:
        UserError: No such model, files missing or truncated, weights missing, NaN or infinite.
    """
    return _load(
        AutoModelForCausalLM,
        name,
        revision=revision,
        dtype=dtype,
        device=device,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )


def load_classifier(
    name: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with its tokenizer; same sources and errors as `load_model`."""
    return _load(
        AutoModelForSequenceClassification,
        name,
        revision=revision,
        dtype=dtype,
        device=device,
        quantization=None,
        trust_remote_code=False,
    )


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer alone; nothing about its padding is changed."""
    folder = snapshot(name, revision=revision, trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except CONFIG_FAULTS as error:
        raise UserError(f"{name} has no usable tokenizer: {_one_line(error)}") from error


def dtype_of(name: str, device: str) -> str | None:
    """What `auto` stands for with a model on this machine; None where its files are not here."""
    try:
        place = resolve(name)
        return dtypes.recorded(place, _placement(device)) if isinstance(place, Path) else None
    except UserError:
        return None


def _revision(folder: Path, name: str) -> str:
    if folder.parent.name == "snapshots":
        return folder.name
    shapes = [(path.name, path.stat().st_size) for path in sorted(folder.glob("*.safetensors"))]
    config = (folder / "config.json").read_text(encoding="utf-8")
    return f"local-{fingerprint(config, shapes)}"


def resolved_revision(model: PreTrainedModel) -> str | None:
    """The hub commit a model came from; `local-<hash of configuration and sizes>` for a folder."""
    return getattr(model, "surgery_revision", None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def untrained(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the same shape, type and device that learnt nothing: its class's random start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    return found.to(device=model.device, dtype=model.dtype).eval()

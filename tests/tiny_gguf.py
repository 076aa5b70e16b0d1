"""A tiny Llama as a GGUF file, for tests that read one."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

WIDTH, INNER, HEADS, BLOCKS, VOCABULARY = 32, 64, 4, 2, 260


def write(
    path: Path, kind: type = np.float32, architecture: str = "llama"
) -> dict[str, np.ndarray]:
    """A tiny Llama as GGUF, with a byte-level tokenizer; its weights by GGUF's names."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes["output.weight"] = (VOCABULARY, WIDTH)
    for block in range(BLOCKS):
        inside = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH, WIDTH),
            "attn_v": (WIDTH, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
        }
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in inside.items()}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(chr(0x100 + n) for n in range(VOCABULARY - 2)), "Āā", "<end>"])
    writer.add_token_types([1] * (VOCABULARY - 1) + [3])
    writer.add_token_merges(["Ā ā"])
    writer.add_bos_token_id(VOCABULARY - 1)
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_chat_template("{{ messages[0].content }}")
    for name, weight in weights.items():
        matrix = weight.ndim == 2 and kind is np.float16
        stored = GGMLQuantizationType.F16 if matrix else GGMLQuantizationType.F32
        writer.add_tensor(name, weight.astype(kind) if matrix else weight, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights

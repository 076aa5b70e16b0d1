"""Tiny models of every architecture that the package reads, as a table: name → config.

Weights are random, so a test builds what it needs in milliseconds.
"""

from typing import Any

import torch
import transformers as hf

WIDTH = 32
UNITS = 48
VOCABULARY = 100
CONTEXT = 128
EXPERTS = 4
EXPERT_UNITS = 24

_sizes: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": UNITS,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_no_groups = {name: size for name, size in _sizes.items() if name != "num_key_value_heads"}

CONFIGS: dict[str, hf.PreTrainedConfig] = {
    "llama": hf.LlamaConfig(**_sizes),
    "llama-biased": hf.LlamaConfig(**_sizes, mlp_bias=True, tie_word_embeddings=True),
    "mistral": hf.MistralConfig(**_sizes, sliding_window=8),
    "qwen2": hf.Qwen2Config(**_sizes),
    "qwen3": hf.Qwen3Config(**_sizes, head_dim=8),
    "gemma": hf.GemmaConfig(**_sizes, head_dim=8),
    "gemma2": hf.Gemma2Config(**_sizes, head_dim=8),
    "gemma3": hf.Gemma3TextConfig(**_sizes, head_dim=8),
    "phi3": hf.Phi3Config(**_sizes),
    "glm4": hf.Glm4Config(**_sizes, head_dim=8, partial_rotary_factor=0.5),
    "mixtral": hf.MixtralConfig(**_sizes, num_local_experts=EXPERTS),
    "qwen2_moe": hf.Qwen2MoeConfig(  # a shared expert beside those that tokens are routed to
        **_sizes,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=EXPERT_UNITS,
        shared_expert_intermediate_size=UNITS,
    ),
    "qwen3_moe": hf.Qwen3MoeConfig(
        **_sizes,
        head_dim=8,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=EXPERT_UNITS,
        mlp_only_layers=[1],
    ),
    "gpt2": hf.GPT2Config(
        n_embd=WIDTH,
        n_layer=3,
        n_head=4,
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": hf.GPTNeoXConfig(**_no_groups),
}

# Known to transformers, not to the table of surgery_lib/models/layout.py: refused by name.
UNKNOWN: dict[str, hf.PreTrainedConfig] = {
    "opt": hf.OPTConfig(
        hidden_size=WIDTH,
        ffn_dim=UNITS,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        word_embed_proj_dim=WIDTH,
    ),
    # Experts transposed and interleaved; with this width its shape alone would not tell.
    "gpt_oss": hf.GptOssConfig(
        **{**_sizes, "intermediate_size": WIDTH // 2}, num_local_experts=EXPERTS, head_dim=8
    ),
}

# Gate rows that each model has: block by block, experts within the block.
GATE_ROWS: dict[str, list[int]] = {
    **{name: [UNITS] * 3 for name in CONFIGS},
    "mixtral": [UNITS] * EXPERTS * 3,
    "qwen2_moe": ([UNITS] + [EXPERT_UNITS] * EXPERTS) * 3,
    "qwen3_moe": [EXPERT_UNITS] * EXPERTS + [UNITS] + [EXPERT_UNITS] * EXPERTS,
    "gpt2": [4 * WIDTH] * 3,
}


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A causal language model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = CONFIGS[name] if name in CONFIGS else UNKNOWN[name]
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms too: zeros would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


class Letters:
    """A tokenizer of single letters, without pad token or begin token; "a" is token 0."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[(ord(c) - ord("a")) % VOCABULARY for c in text] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {chr(ord("a") + token): token for token in range(26)}


TEXTS = ["hello", "a", "alongertextthanalltheothers", "abba", "surgery", "rows", "zzzzzzzz", "of"]


def state(model: Any) -> dict[str, torch.Tensor]:
    """A copy of everything a model holds."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors hold the same bytes: unlike `torch.equal`, -0.0 is not 0.0."""
    raw = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (left, right)]
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(*raw)

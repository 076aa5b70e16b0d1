"""A Llama's training step for two CPU cores: bfloat16 arithmetic over float32 weights.

About twice as fast as the library's own forward pass, whose attention backward and casts take most
of the time at this size; a test holds the two together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig

HALF = torch.bfloat16
MASKED = -30000.0  # finite in bfloat16, and nothing after the softmax


class RMSNorm(torch.autograd.Function):
    """Root-mean-square norm of rows (n, width) in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
        scale = (square / x.shape[-1] + eps).rsqrt().to(x.dtype)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and of the weight."""
        normed, scale, weight = ctx.saved_tensors
        inner = grad * weight
        dot = torch.bmm(inner.unsqueeze(1), normed.unsqueeze(2)).squeeze(-1) / normed.shape[-1]
        return torch.addcmul(inner, normed, dot, value=-1).mul_(scale), (grad * normed).sum(0), None


class Forward:
    """Logits of packed documents, from a Llama's named weights.

    Documents in a row do not see each other. Every row has `length` tokens.
    """

    def __init__(self, config: LlamaConfig, length: int, dtype: torch.dtype = HALF) -> None:
        self.config = config
        self.length = length
        self.dtype = dtype
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head = config.hidden_size // self.heads
        theta = config.rope_parameters["rope_theta"]
        rates = theta ** (-torch.arange(0, self.head, 2).float() / self.head)
        self.angles = torch.arange(length).float()[:, None] * rates
        half = self.head // 2
        turn = torch.zeros(self.head, self.head)
        turn[half:, :half], turn[:half, half:] = -torch.eye(half), torch.eye(half)
        self.turn = turn.to(dtype)

    def __call__(self, weights: Mapping[str, Tensor], ids: Tensor, documents: Tensor) -> Tensor:
        """Logits (batch * length, vocabulary); ids and document numbers are (batch, length)."""
        eps = self.config.rms_norm_eps
        embedding = weights["model.embed_tokens.weight"]
        mask, cos, sin = self._places(documents)
        x = functional.embedding(ids.reshape(-1), embedding)
        for block in range(self.config.num_hidden_layers):
            w = {
                name: weights[f"model.layers.{block}.{name}.weight"]
                for name in (
                    *(f"self_attn.{matrix}_proj" for matrix in "qkvo"),
                    *(f"mlp.{matrix}_proj" for matrix in ("gate", "up", "down")),
                    *("input_layernorm", "post_attention_layernorm"),
                )
            }
            normed = RMSNorm.apply(x, w["input_layernorm"], eps)
            x = x + self._attention(w, normed, mask, cos, sin)
            normed = RMSNorm.apply(x, w["post_attention_layernorm"], eps)
            gate, up = (
                functional.linear(normed, w["mlp.gate_proj"]),
                functional.linear(normed, w["mlp.up_proj"]),
            )
            x = x + functional.linear(functional.silu(gate) * up, w["mlp.down_proj"])
        return functional.linear(RMSNorm.apply(x, weights["model.norm.weight"], eps), embedding)

    def _places(self, documents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Positions need not restart with each document: rotary attention sees differences only.
        batch, length = documents.shape
        seen = (documents[:, :, None] == documents[:, None, :]).tril_()
        mask = torch.where(seen, 0.0, MASKED).to(self.dtype)
        mask = mask[:, None, None].expand(
            batch, self.groups, self.heads // self.groups, length, length
        )
        angles = torch.cat([self.angles, self.angles], -1)[:, None]
        return (
            mask.reshape(batch * self.groups, -1, length),
            angles.cos().to(self.dtype),
            angles.sin().to(self.dtype),
        )

    def _attention(
        self, w: Mapping[str, Tensor], x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        heads, groups, head, length = self.heads, self.groups, self.head, self.length
        batch = len(x) // length
        joined = torch.cat([w[f"self_attn.{matrix}_proj"] for matrix in "qkv"])
        qkv = functional.linear(x, joined).view(batch, length, heads + 2 * groups, head)
        turned, value = qkv.split([heads + groups, groups], 2)
        turned = torch.addcmul(turned * cos, turned @ self.turn, sin)
        query, key = turned.split([heads, groups], 2)
        query = query.reshape(batch, length, groups, -1, head).permute(0, 2, 3, 1, 4)
        query = query.reshape(batch * groups, -1, head)
        key = key.transpose(1, 2).reshape(batch * groups, length, head)
        value = value.transpose(1, 2).reshape(batch * groups, length, head)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=head**-0.5)
        out = torch.bmm(scores.softmax(-1), value)
        out = out.view(batch, groups, -1, length, head).permute(0, 3, 1, 2, 4)
        return functional.linear(out.reshape(len(x), heads * head), w["self_attn.o_proj"])

"""HuRef's fingerprint: terms of the weights that no rearrangement of the same function changes.

Zeng et al., "HuRef: HUman-REadable Fingerprint for Large Language Models" (arXiv 2312.04828). With
X the embedding rows of n rare tokens and weights stored (out, in), each block has three terms:

    M_a = X Wq^T Wk X^T      M_b = X Wv^T Wo^T X^T      M_f = X (Wg^T * Wu^T) Wd^T X^T

Each is standardised over its entries, and the cosine of all of them together, times 100, is the
ICS. Beyond the paper: terms of all blocks and not of the last two alone, norm gains multiplied
into the weights that read them (or folding them moves the fingerprint of an unchanged function),
key and value heads repeated as grouped queries use them. Rotary positions are left out, as there.

The n by n terms are never formed: with X = Q R and A the (width, width) kernel, the term is
Q (R A R^T) Q^T, so that means, norms and products come from (width, width) matrices exactly. Terms
are multiplied out in float32: what that rounds parts equal terms by its square alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery.gains import gain_of, gains

KINDS = ("attention", "values", "mlp")  # M_a, M_b, M_f
TOKENS = 4096  # as many of the rarest as the paper takes
LAST = 2  # blocks that the paper reads


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The invariant terms of one model.

    `basis` (n, rank) is Q of the chosen embedding rows, `terms` holds R A R^T (rank, rank) by block
    and kind, `ones` (rank,) is Q^T 1.
    """

    basis: Tensor
    ones: Tensor
    terms: Mapping[tuple[int, str], Tensor]

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return 1 + max(block for block, _ in self.terms)

    def moments(self, key: tuple[int, str]) -> tuple[float, float]:
        """Mean of a term's n^2 entries, and the norm of the term less that mean."""
        term, n = self.terms[key].double(), len(self.basis)
        mean = float(self.ones @ term @ self.ones) / n**2
        return mean, max(float(term.square().sum()) - (n * mean) ** 2, 0.0) ** 0.5


@torch.no_grad()
def read(
    model: nn.Module, tokens: Sequence[int], *, kinds: Sequence[str] = KINDS, gained: bool = True
) -> Fingerprint:
    """The fingerprint of a model by the embedding rows of `tokens`.

    `gained=False` leaves the norms' gains out, as the authors' code does. `kinds` may leave out the
    terms of matrices that an architecture fuses: UserError names those that the table of
    architectures does not hold. Experts of a block are summed, so that their order does not count.
    """
    if len(tokens) < 2:
        raise UserError("a fingerprint needs two tokens or more; give longer texts to count in")
    rows = model.get_input_embeddings().weight[list(tokens)]  # type: ignore[operator]
    basis, upper = torch.linalg.qr(rows.detach().double().cpu())
    found, upper = {}, upper.float()
    for kind in kinds:
        for block, kernel in enumerate(_kernels(model, kind, gained)):
            found[block, kind] = upper @ kernel @ upper.t()
    return Fingerprint(basis, basis.sum(0), found)


def correlation(first: Fingerprint, second: Fingerprint, key: tuple[int, str]) -> float:
    """Pearson correlation of all n^2 entries of one term of two models."""
    return _correlation(first, second, key, key, _overlap(first, second))


def ics(first: Fingerprint, second: Fingerprint, *, last: int | None = None) -> float:
    """Invariant terms' cosine similarity, in hundredths, over the last blocks (None: all).

    Each standardised term has the same norm, so that the cosine of all is the mean correlation.
    Models of different depth are compared from the end.
    """
    values = list(by_term(first, second, last=last).values())
    return 100 * sum(values) / len(values)


def by_term(
    first: Fingerprint, second: Fingerprint, *, last: int | None = None
) -> dict[tuple[int, str], float]:
    """Correlation of each term, keyed by the first model's block and kind."""
    if len(first.basis) != len(second.basis):
        raise UserError(
            f"fingerprints of {len(first.basis)} and {len(second.basis)} tokens cannot be "
            "compared; read both with as many"
        )
    if last is None and first.blocks != second.blocks:
        raise UserError(
            f"the models have {first.blocks} and {second.blocks} blocks; compare the last ones "
            "alone, with last=2"
        )
    overlap, found = _overlap(first, second), {}
    count = min(last or first.blocks, first.blocks, second.blocks)
    for back in range(count, 0, -1):
        for kind in dict.fromkeys(kind for _, kind in first.terms):
            one, other = (first.blocks - back, kind), (second.blocks - back, kind)
            found[one] = _correlation(first, second, one, other, overlap)
    return found


def matrix(fingerprints: Sequence[Fingerprint], *, last: int | None = LAST) -> list[list[float]]:
    """ICS of every pair: a symmetric square with 100 on its diagonal."""
    count = len(fingerprints)
    square = [[100.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(i):
            value = ics(fingerprints[i], fingerprints[j], last=last)
            square[i][j] = square[j][i] = value
    return square


@torch.no_grad()
def pcs(first: nn.Module, second: nn.Module) -> tuple[float, list[str]]:
    """Cosine of all parameters, in hundredths, and the names that were skipped.

    Parameters that only one model has, or whose shapes differ, are skipped, as the authors do; here
    they are named.
    """
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    same = [n for n in ours if n in theirs and ours[n].shape == theirs[n].shape]
    dot = one = other = 0.0
    for name in same:
        a, b = ours[name].detach().double().cpu(), theirs[name].detach().double().cpu()
        dot += float((a * b).sum())
        one += float(a.square().sum())
        other += float(b.square().sum())
    if not one * other:
        raise UserError("the two models have no parameters of equal name and shape to compare")
    return 100 * dot / (one * other) ** 0.5, sorted((ours.keys() | theirs.keys()) - set(same))


@torch.no_grad()
def moved(
    base: nn.Module, other: nn.Module, matrices: Sequence[str] = layout.MATRICES
) -> dict[str, list[float]]:
    """How far each matrix of each block moved: |W' - W| / |W|, over a block's experts together.

    This is of the weights themselves, and so not invariant: with `by_term` it says which matrix a
    term's change comes from. Matrices that the architecture fuses or lacks are left out.
    """
    found = {}
    for name in matrices:
        try:
            ours, theirs = (layout.weight_rows(m, name, editable=False) for m in (base, other))
        except UserError:
            continue
        change, size = ([0.0] * len(layout.blocks(base)) for _ in range(2))
        for a, b in zip(ours, theirs, strict=True):
            change[a.block] += float((b.weight.float() - a.weight.float()).square().sum())
            size[a.block] += float(a.weight.float().square().sum())
        found[name] = [(c / s) ** 0.5 for c, s in zip(change, size, strict=True)]
    return found


def rare_tokens(tokenizer: Any, texts: Sequence[str], count: int = TOKENS) -> list[int]:
    """The rarest tokens that occur in the texts, at most `count`, special ones left out.

    Sorted by (occurrences, id) downwards and cut from the end, as the authors' list is.
    """
    counted: Counter[int] = Counter()
    for ids in tokenizer(list(texts))["input_ids"]:
        counted.update(ids)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    kept = [token for token in counted if token not in special]
    return sorted(kept, key=lambda token: (counted[token], token), reverse=True)[-count:]


def heads(model: nn.Module) -> tuple[int, int]:
    """How many query heads a model has, and how many of keys and values."""
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    queries = int(config.num_attention_heads)
    return queries, int(getattr(config, "num_key_value_heads", None) or queries)


def _kernels(model: nn.Module, kind: str, gained: bool) -> list[Tensor]:
    """A of each block, (width, width), float32: the term is X A X^T."""
    if kind == "mlp":
        return _mlp_kernels(model, gained)
    if kind not in KINDS:
        raise UserError(f"term {kind!r} is unknown; choose from {', '.join(KINDS)}")
    names = ("q", "k") if kind == "attention" else ("v", "o")
    queries, keys = heads(model)
    found = []
    for block, (first, second) in enumerate(
        zip(*(_weights(model, name, gained) for name in names), strict=True)
    ):
        if kind == "attention":
            first = _gain_heads(model, block, "q", first, queries)
            second = _repeated(_gain_heads(model, block, "k", second, keys), queries, keys)
        else:
            first = _repeated(first, queries, keys)
        found.append(first.t() @ second)
    return found


def _mlp_kernels(model: nn.Module, gained: bool) -> list[Tensor]:
    parts = [_entries(model, name, gained) for name in ("gate", "up", "down")]
    gate, up, down = (list(part) for part in parts)
    width = layout.hidden_width(model)
    kernels = [torch.zeros(width, width) for _ in layout.blocks(model)]
    if up and len(up) != len(gate):
        raise UserError("some of this model's MLPs are gated and some are not; use another term")
    for number, (block, opened) in enumerate(gate):
        product = opened * up[number][1] if up else opened
        kernels[block] += product.t() @ down[number][1]
    return kernels


def _entries(model: nn.Module, name: str, gained: bool) -> list[tuple[int, Tensor]]:
    """(block, rows (units, width)) of every matrix of a kind, float32; none where there is none."""
    if name == "up" and all(layout.mlp_of(block).up is None for block in layout.blocks(model)):
        return []
    by_block = gains(model, name) if gained and name in ("gate", "up", "q", "k", "v") else None
    found = []
    for rows in layout.weight_rows(model, name, editable=False):
        if rows.weight.is_meta or not rows.weight.is_floating_point():
            raise UserError(f"{rows.parameter} is quantized or not in memory; load it in full")
        weight = rows.weight.detach().float().cpu()
        found.append((rows.block, weight * by_block[rows.block].float() if by_block else weight))
    return found


def _weights(model: nn.Module, name: str, gained: bool) -> list[Tensor]:
    return [weight for _, weight in _entries(model, name, gained)]


def _gain_heads(model: nn.Module, block: int, name: str, weight: Tensor, count: int) -> Tensor:
    """Rows times the gain of the norm inside each head, where there is one (Qwen3, Gemma 3)."""
    attention = getattr(layout.blocks(model)[block], "self_attn", None)
    norm = getattr(attention, f"{name}_norm", None)
    size = len(weight) // count
    if norm is None:
        return weight
    own = next(iter(norm.parameters()))
    gain = gain_of(norm, len(own)).float()
    return weight * (gain.repeat(count) if len(gain) == size else gain)[:, None]


def _repeated(weight: Tensor, queries: int, keys: int) -> Tensor:
    """Rows of key or value heads, each head once for every query head of its group.

    Each is repeated in place, not the whole block after the whole: that would pair wrong heads.
    """
    size = len(weight) // keys
    each = weight.view(keys, size, -1).repeat_interleave(queries // keys, dim=0)
    return each.reshape(queries * size, -1)


def _overlap(first: Fingerprint, second: Fingerprint) -> Tensor | None:
    """Q1^T Q2; None for the identity, where both models have the same embeddings."""
    if first.basis.shape == second.basis.shape and torch.equal(first.basis, second.basis):
        return None
    return first.basis.t() @ second.basis


def _correlation(
    first: Fingerprint,
    second: Fingerprint,
    one: tuple[int, str],
    other: tuple[int, str],
    overlap: Tensor | None,
) -> float:
    (mean, norm), (mean2, norm2) = first.moments(one), second.moments(other)
    term, term2 = first.terms[one].double(), second.terms[other].double()
    if overlap is not None:
        term2 = overlap @ term2 @ overlap.t()
    product = float((term * term2).sum()) - len(first.basis) ** 2 * mean * mean2
    return product / (norm * norm2) if norm * norm2 else 0.0

"""Where the residual stream must move for a text to become likelier, by forward passes alone.

The log-likelihood of a token y after a state h, which the final norm makes into z, is
log softmax(U z)_y, and its gradient by z has a closed form: u_y - sum_v p_v u_v, the token's output
vector less the one that the model expects (U holds them as rows, p is what the model says). The
norm's gain takes it to the residual stream, up to the state's own length. So the direction in which
behaving answers become likelier and others less so, the policy gradient at the end of the network
(Williams 1992, REINFORCE, with a score for the reward), takes no backward pass.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.models.activations import batches
from surgery_lib.models.tokens import pad
from surgery_lib.surgery.gains import gain_of

# The norm before the output embeddings, as the architectures name it.
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
# States whose distributions over the vocabulary are held at once.
AT_ONCE = 512


@torch.no_grad()
def gradients(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    tokens_per_batch: int = 2048,
) -> Tensor:
    """For each text the mean over its tokens of the gradient of their log-likelihood.

    Args:
        rows: Token ids of each text.
        starts: The first token of each that counts, 1 or later: token 0 has nothing before it.

    Returns:
        (texts, width), float32, with respect to the residual stream before the final norm at the
        position before each token, up to the length of the state there.

    Raises:
        UserError: A text without a token that counts, or a model without output embeddings.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise UserError("the model has no output embeddings; give a causal language model")
    for number, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        if not 1 <= start < len(ids):
            raise UserError(f"text {number} has no token from {start} on; drop it")
    found = torch.zeros(len(rows), layout.hidden_width(model))
    for which, tokens, states, _ in states_before(model, head, rows, starts, tokens_per_batch):
        found.index_add_(0, which, surplus(head, states, tokens))
    counts = torch.tensor([len(ids) - start for ids, start in zip(rows, starts, strict=True)])
    return found / counts[:, None] * gain_of(final_norm(model), found.shape[1])


def surplus(
    head: nn.Module, states: Tensor, tokens: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """u_y - sum_v p_v u_v, (n, width) float32, for normed states (n, width) and tokens y (n,).

    With a `generator`, of tokens that the model draws after these states instead.
    """
    weight: Tensor = head.weight  # type: ignore[assignment]
    parts = []
    for some, own in zip(states.split(AT_ONCE), tokens.split(AT_ONCE), strict=True):
        told = head(some).float().softmax(-1)
        if generator is not None:
            drawn = torch.multinomial(told.cpu(), 1, generator=generator)[:, 0]
            own = drawn.to(own.device)
        parts.append((weight[own] - told.to(weight.dtype) @ weight).float().cpu())
    return torch.cat(parts)


def final_norm(model: nn.Module) -> nn.Module | None:
    """The norm before the output embeddings; None where none is known."""
    base = getattr(model, "base_model", model)
    return next((getattr(base, name) for name in FINAL_NORMS if hasattr(base, name)), None)


def states_before(
    model: nn.Module,
    head: nn.Module,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    tokens_per_batch: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Text number (n,), token (n,) and the normed state before it (n, width), batch by batch.

    And which positions of the batch (texts, longest - 1) those states stand at.
    """
    base = getattr(model, "base_model", model)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    for group in batches([len(ids) for ids in rows], tokens_per_batch):
        ids, lengths = pad([rows[i] for i in group])
        first = torch.tensor([starts[i] for i in group])
        position = torch.arange(1, ids.shape[1])
        wanted = (position < lengths[:, None]) & (position >= first[:, None])
        states = base(input_ids=ids.to(device), use_cache=False).last_hidden_state[:, :-1]
        which = torch.tensor(group)[:, None].expand_as(wanted)[wanted]
        tokens = ids[:, 1:][wanted].to(head.weight.device)  # type: ignore[arg-type]
        here = wanted.to(states.device)
        yield which, tokens, states[here], here

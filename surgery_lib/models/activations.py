"""Pooled hidden states of many texts, at all layers, in one forward pass over each text.

The base model runs without the language-model head; each layer's states are reduced to one vector
a text as soon as they exist, so that memory does not grow with depth times length. Texts are
sorted by length and batched by a budget of tokens, which leaves next to no padding.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.models.tokens import pad, real_tokens, tokenize

# `after_first` is the mean without the first token, whose state is hundreds of times as long as the
# others' in many published models (an attention sink) and says little of the text but its length.
Pooling = Literal["mean", "last", "after_first"]

STATES = "states-*.safetensors"
CACHE_BYTES = 4 << 30  # of all kept states; the least used go first
MAX_TOKENS = 100  # of a text, as in the paper's recipe
TOKENS_PER_BATCH = 2048
# How much shorter than its batch's longest text a text may be: tokens, and a share of the longest.
MIN_GAP = 2
MAX_GAP = 0.1


def n_layers(model: nn.Module) -> int:
    """How many `hidden_states` there are: the embeddings, and one after every block."""
    return len(layout.blocks(model)) + 1


def layer_numbers(model: nn.Module, layers: Literal["all"] | Sequence[int]) -> list[int]:
    """Layers of a profile as indices of `hidden_states`: all of them, or negative from the end.

    UserError for a layer that does not exist.
    """
    count = n_layers(model)
    if layers == "all":
        return list(range(count))
    numbers = [int(layer) + count * (int(layer) < 0) for layer in layers]
    return sorted(set(_checked_layers(model, numbers)))


@torch.no_grad()
def pooled_states(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "mean",
    max_tokens: int = MAX_TOKENS,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> Tensor:
    """Hidden states pooled over the real tokens of each text: (texts, layers, width), float32.

    `layers` index `hidden_states` as transformers defines it: 0 is the embeddings, the last one
    comes after the final norm and the others before it. None means all. Texts are cut after
    `max_tokens` tokens (the paper: 100). Padding stands on the right whatever the tokenizer
    prefers: in a causal model it cannot reach the real tokens, so no mask is needed.

    Raises:
        UserError: An empty text, a layer that does not exist, and `max_tokens` beyond the model's
            context.
    """
    chosen = _checked_layers(model, layers)
    token_ids = tokenize(model, tokenizer, texts, max_tokens)
    width = layout.hidden_width(model)
    pooled = torch.empty(len(texts), len(chosen), width, dtype=torch.float32)
    base = getattr(model, "base_model", model)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    was_training = model.training
    model.eval()
    pooler = _Pooler(model, chosen, pooling)
    try:
        with tqdm(total=len(texts), desc="hidden states", disable=not progress) as bar:
            for batch in batches([len(ids) for ids in token_ids], tokens_per_batch):
                ids, lengths = pad([token_ids[i] for i in batch])
                pooler.start(lengths)
                with contextlib.suppress(_AllSeenError):  # nothing runs behind the last layer asked
                    pooler.last(base(input_ids=ids.to(device), use_cache=False).last_hidden_state)
                pooled[torch.tensor(batch)] = pooler.states()
                bar.update(len(batch))
    finally:
        pooler.remove()
        model.train(was_training)
    if not torch.isfinite(pooled).all():
        raise UserError(
            "the model gives hidden states that are not finite; load it in float32 or bfloat16, "
            "and check its weights"
        )
    return pooled


def cached_states(
    cache: Path | str | None, model: nn.Module, tokenizer: Any, texts: Sequence[str], **options: Any
) -> Tensor:
    """`pooled_states`, kept under `cache` by a hash of model, tokens and options.

    A damaged cache file is made again; `cache=None` computes without keeping.
    """
    if cache is None:
        return pooled_states(model, tokenizer, texts, **options)
    settings = {name: value for name, value in options.items() if name != "progress"}
    # Tokens, not texts: two tokenizers of one vocabulary may begin a text differently.
    token_ids = tokenize(model, tokenizer, texts, options.get("max_tokens", MAX_TOKENS))
    key = files.fingerprint(model_hash(model), token_ids, settings)
    path = Path(cache) / f"states-{key}.safetensors"
    if path.is_file():
        try:
            states = files.read_tensors(path)["states"]
            path.touch()
            return states
        except (UserError, KeyError):
            path.unlink()
    states = pooled_states(model, tokenizer, texts, **options)
    try:
        files.write_tensors(path, {"states": states})
    except UserError as error:  # a full disk or a folder that may not be written: only time is lost
        warnings.warn(f"hidden states are not kept: {error}", stacklevel=2)
        return states
    files.prune(Path(cache), STATES, CACHE_BYTES, keep=path)
    return states


@torch.no_grad()
def read_inputs(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str] | Sequence[list[int]],
    modules: Mapping[str, nn.Module],
    visit: Callable[[str, Tensor, Tensor, Tensor], None],
    *,
    max_tokens: int = MAX_TOKENS,
    tokens_per_batch: int = 2 * TOKENS_PER_BATCH,
    progress: bool = False,
    to_the_end: bool = True,
) -> int:
    """Run the texts once and show every module's inputs; the number of tokens read.

    Texts may be given as their token ids, which are read as they are, however many.
    `visit(name, inputs, lengths, texts)` gets a batch's inputs (batch, longest, width), padded on
    the right, the lengths (batch,), and which texts these are (batch,). Without `to_the_end`
    nothing runs behind the last of the modules.
    """
    if texts and isinstance(texts[0], list):
        token_ids = cast(list[list[int]], list(texts))
    else:
        token_ids = tokenize(model, tokenizer, cast(Sequence[str], texts), max_tokens)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    now: dict[str, Tensor] = {}
    last = next(reversed(list(modules)), None)

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            visit(name, args[0], now["lengths"].to(args[0].device), now["texts"])
            if not to_the_end and name == last:
                raise _AllSeenError

        return module.register_forward_pre_hook(hook)

    base = getattr(model, "base_model", model)
    was_training = model.training
    model.eval()
    handles = [watch(name, module) for name, module in modules.items()]
    try:
        with tqdm(total=len(texts), desc="inputs", disable=not progress) as bar:
            for batch in batches([len(ids) for ids in token_ids], tokens_per_batch):
                ids, lengths = pad([token_ids[i] for i in batch])
                now.update(lengths=lengths, texts=torch.tensor(batch))
                with contextlib.suppress(_AllSeenError):
                    base(input_ids=ids.to(device), use_cache=False)
                bar.update(len(batch))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return sum(len(ids) for ids in token_ids)


def model_hash(model: nn.Module) -> str:
    """A hash of every weight, so that an edited model is another model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().contiguous().flatten().cpu()
        digest.update(raw.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices in groups whose padded batch holds at most `tokens_per_batch` tokens, longest first.

    Longest first shows at once whether the largest batch fits into memory. A batch also ends where
    a text is much shorter than its longest one, so that little time goes into padding.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        longest = lengths[batch[0]] if batch else 0
        full = (len(batch) + 1) * longest > tokens_per_batch
        if batch and (full or longest - lengths[index] > max(MIN_GAP, longest * MAX_GAP)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class _AllSeenError(Exception):
    """Every module has been shown its inputs."""


class _Pooler:
    """Hooks that reduce each wanted layer's states to one vector a text."""

    def __init__(self, model: nn.Module, layers: Sequence[int], pooling: Pooling) -> None:
        self.layers = list(layers)
        self.deepest = max(layers, default=0)
        self.pooling = pooling
        self.found: dict[int, Tensor] = {}
        self.lengths = torch.empty(0)
        self.final = len(layout.blocks(model))
        # hidden_states[l] is what block l is given; the last one is the base model's output.
        self.handles = [
            block.register_forward_pre_hook(self._hook(index), with_kwargs=True)
            for index, block in enumerate(layout.blocks(model))
            if index in self.layers
        ]

    def _hook(self, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.found[index] = self._pool(args[0] if args else kwargs["hidden_states"])
            if index == self.deepest:
                raise _AllSeenError

        return hook

    def start(self, lengths: Tensor) -> None:
        self.found = {}
        self.lengths = lengths

    def last(self, hidden: Tensor) -> None:
        if self.final in self.layers:
            self.found[self.final] = self._pool(hidden)

    def _pool(self, hidden: Tensor) -> Tensor:
        lengths = self.lengths.to(hidden.device)
        if self.pooling == "last":
            return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1].float()
        real = real_tokens(lengths, hidden.shape[1])
        if self.pooling == "after_first":  # a text of one token has no other
            real[:, 0] &= lengths == 1
        weights = (real / real.sum(1, keepdim=True)).to(torch.float32)
        return torch.bmm(weights[:, None], hidden.float())[:, 0]

    def states(self) -> Tensor:
        return torch.stack([self.found[layer].cpu() for layer in self.layers], dim=1)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _checked_layers(model: nn.Module, layers: Sequence[int] | None) -> list[int]:
    count = n_layers(model)
    if layers is None:
        return list(range(count))
    for layer in layers:
        if not 0 <= layer < count:
            raise UserError(
                f"layer {layer} does not exist; this model's hidden states are numbered "
                f"0 to {count - 1}"
            )
    return list(layers)

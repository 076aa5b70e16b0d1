"""Maps of norms' outputs, each fitted on states that the maps before it have changed.

Concept scrubbing (LEACE) and activation transport (linear-AcT) are both fitted so: the first norm's
map on the model as it is, the second's with the first at work, and so on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import tools
from surgery_lib.baselines.base import Cost, Lesson, Read
from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout
from surgery_lib.models.tokens import real_tokens

# The norms before attention and before the MLP: of each row, the first that a block has.
BEFORE = (
    ("input_layernorm", "ln_1"),
    ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm"),
)
# The norms behind attention and MLP, of those architectures that have both (Gemma 2 and 3, OLMo 2).
BEHIND = (("post_attention_layernorm",), ("post_feedforward_layernorm",))


class Map(Protocol):
    """What becomes of a norm's output."""

    def __call__(self, states: Tensor, strength: float) -> Tensor:
        """States (..., width) changed; strength 0 is the identity, 1 the whole map."""
        ...


class Sample(Protocol):
    """What a map is fitted from, gathered batch by batch."""

    def add(self, states: Tensor, real: Tensor, texts: Tensor) -> None:
        """States (batch, longest, width), which are no padding, and numbers of the texts."""
        ...

    def fit(self) -> Map:
        """The map."""
        ...


@dataclass(frozen=True, eq=False)
class FittedMaps(Read):
    """`maps`: one for each of the norms that `places` finds in the model, in their order."""

    maps: Sequence[Map]
    places: Callable[[nn.Module], list[nn.Module]]
    parameters: int

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float) -> Iterator[Any]:
        """Every norm's output mapped at every position, as far as `strength` says."""
        pairs = zip(self.places(model), self.maps, strict=True) if strength else ()
        handles = [tools.on_output(norm, partial(one, strength=strength)) for norm, one in pairs]
        with tools.hooked(handles):
            yield model

    def cost(self, **_: Any) -> Cost:
        """The maps' numbers. No norm without a bias can hold them."""
        return self.price(self.parameters, ordinary_checkpoint=False)


def fit_in_order(
    lesson: Lesson, norms: Sequence[nn.Module], sample: Callable[[], Sample]
) -> tuple[list[Map], int]:
    """A map for each norm and the tokens read: one pass a norm, ended where that norm stands."""
    maps: list[Map] = []
    tokens = 0
    with ExitStack() as stack:
        for norm in norms:
            gathered = sample()
            tokens += activations.read_inputs(
                lesson.model,
                lesson.tokenizer,
                lesson.data.texts,
                {"": norm},
                _visit(norm, gathered),
                to_the_end=False,
            )
            maps.append(gathered.fit())
            handle = tools.on_output(norm, partial(maps[-1], strength=1.0))
            stack.callback(handle.remove)
    return maps, tokens


def _visit(norm: nn.Module, gathered: Sample) -> Callable[[str, Tensor, Tensor, Tensor], None]:
    def visit(_: str, inputs: Tensor, lengths: Tensor, texts: Tensor) -> None:
        # Not by calling the module, which would come back here.
        gathered.add(norm.forward(inputs), real_tokens(lengths, inputs.shape[1]), texts)

    return visit


def norms_before(model: nn.Module) -> list[nn.Module]:
    """What every block's attention and MLP read, in their order."""
    return [norm for block in layout.blocks(model) for norm in _found(block, BEFORE)]


def norms_behind(model: nn.Module) -> list[nn.Module]:
    """What every block's attention and MLP write through where they do, else what they read."""
    blocks = layout.blocks(model)
    behind = all(hasattr(block, BEHIND[-1][0]) for block in blocks)
    return [norm for block in blocks for norm in _found(block, BEHIND if behind else BEFORE)]


def _found(block: nn.Module, places: Sequence[Sequence[str]]) -> list[nn.Module]:
    found = []
    for names in places:
        name = next((name for name in names if hasattr(block, name)), None)
        if name is None:
            raise UserError(
                f"{type(block).__name__}: no norm found (looked for {', '.join(names)}); add it to "
                "surgery_lib/baselines/sequence.py"
            )
        found.append(block.get_submodule(name))
    return found

"""What every method of the comparison satisfies, so that one loop serves them all.

    fitted = baseline.fit(model, tokenizer, data, seed=0)
    with fitted.applied(model, strength=1.0, layer=0.5) as changed:
        ...  # generate with `changed`, read its logits: every measurement is taken on it

Weight edits and hooks change the model inside the `with` block. So do decoding methods: a hook on
the model's output turns its logits into those that the method samples from, in `generate` as in a
plain forward pass, so that damage is measured on what the method really does. Strength counts
alike everywhere: 0 changes nothing, more means less of the behaviour.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.errors import UserError
from surgery_lib.models import activations
from surgery_lib.models.generation import generate

Kind = Literal["weights", "hook", "decoding", "tokens"]


@dataclass(frozen=True)
class TrainingData:
    """What a method may learn from: the training split, the same for every method.

    `labels` are 1 where the text shows the behaviour. `prompts` are training prompts that trigger
    it and `benign` ones that do not, ready for the model (a chat template already applied).
    """

    texts: Sequence[str]
    labels: Sequence[int]
    prompts: Sequence[str] = ()
    benign: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise UserError(
                f"there are {len(self.texts)} texts but {len(self.labels)} labels; "
                "give one label a text"
            )
        if set(self.labels) != {0, 1}:
            raise UserError("labels must be 0 and 1, with texts of both; check the labels")

    def of(self, label: int) -> list[str]:
        """The texts of one label, in order."""
        return [text for text, own in zip(self.texts, self.labels, strict=True) if own == label]


@dataclass(frozen=True)
class SearchRange:
    """One setting that the search may turn: a range from `low` to `high`, or `choices`.

    Layers are given as a fraction of the depth, so that one range serves models of any depth.
    A strength is `bounded` where more than `high` means nothing, as of a share; the search goes
    beyond any other.
    """

    default: Any
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    bounded: bool = False

    def __post_init__(self) -> None:
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise UserError("a knob has either choices, or low and high; give one of the two")


@dataclass(frozen=True)
class Cost:
    """What a method costs, at given knobs. Peak memory and seconds are measured, not declared.

    `labels`: labelled texts and prompts read; of these, `prompts` that trigger the behaviour and
    `benign` ones; `samples`: completions of the model's own, written and read. `forward_tokens`,
    `backward_tokens`: for fitting.
    `extra_forwards`: forward passes for each generated token beside the model's own, in tokens.
    `parameters`: numbers of the model that differ, or numbers that are added to it.
    `ordinary_checkpoint`: the result can be saved and served as a model of the same architecture.
    """

    labels: int
    forward_tokens: int
    backward_tokens: int = 0
    extra_forwards: float = 0.0
    parameters: int = 0
    prompts: int = 0
    benign: int = 0
    samples: int = 0
    needs_gradients: bool = False
    ordinary_checkpoint: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class Read:
    """What a fit without gradients has read, in `Cost`'s terms; `tokens` are those of it all."""

    labels: int
    tokens: int
    benign: int = 0
    prompts: int = 0
    samples: int = 0

    def price(self, parameters: int, **rest: Any) -> Cost:
        """The cost of having read this and changing so many numbers."""
        read = {"benign": self.benign, "prompts": self.prompts, "samples": self.samples}
        return Cost(self.labels, self.tokens, parameters=parameters, **{**read, **rest})


class Fitted(Protocol):
    """A method fitted to one model and one behaviour. It belongs to the model it was fitted on.

    Implementations name their knobs as keyword arguments with defaults (`*args: Any` here is what
    lets a type checker accept that).
    """

    def applied(
        self, model: PreTrainedModel, strength: float, *args: Any, **knobs: Any
    ) -> AbstractContextManager[Any]:
        """The model to use inside the `with` block; most often the same object, changed.

        After the block every bit of the model is as it was. Knobs not given take their default.
        """
        ...

    def cost(self, *args: Any, **knobs: Any) -> Cost:
        """What fitting took and what applying takes at these knobs."""
        ...


class Baseline(Protocol):
    """A method before it has seen a model. `knobs` always has "strength"."""

    @property
    def name(self) -> str:
        """What files and tables call it."""
        ...

    @property
    def kind(self) -> Kind:
        """What of the model it changes."""
        ...

    @property
    def knobs(self) -> Mapping[str, SearchRange]:
        """What the search may turn, "strength" with it."""
        ...

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        data: TrainingData,
        *args: Any,
        **fixed: Any,
    ) -> Fitted:
        """Learn from the data, leaving the model as it is.

        `fixed`: `seed=0`, which all have, and settings of the fit.
        """
        ...


@dataclass(frozen=True)
class Lesson:
    """What a fit gets: the model, which it leaves as it is, and the data."""

    model: PreTrainedModel
    tokenizer: Any
    data: TrainingData
    seed: int = 0

    def states(self, pooling: activations.Pooling = "mean", **which: Any) -> Tensor:
        """Pooled states of the labelled texts at all layers: (texts, layers, width)."""
        return activations.pooled_states(
            self.model, self.tokenizer, self.data.texts, pooling=pooling, progress=False, **which
        )

    def completions(self, prompts: Sequence[str], count: int, **options: Any) -> list[list[str]]:
        """`count` completions of each prompt, as the model writes them at temperature 1."""
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            samples=count,
            temperature=1.0,
            seed=self.seed,
            **{"progress": False, **options},
        )

    def read(self, texts: Sequence[str] | None = None, max_tokens: int = 100) -> dict[str, int]:
        """What `Read` wants to know of a fit that reads these texts, the labelled ones if none."""
        texts = self.data.texts if texts is None else texts
        tokens = count_tokens(self.tokenizer, texts, max_tokens)
        return {"labels": len(self.data.texts), "tokens": tokens}


Result = TypeVar("Result", bound=Fitted, covariant=True)


class Taught(ABC, Generic[Result]):
    """What `fit` gives a lesson."""

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        data: TrainingData,
        *,
        seed: int = 0,
        **fixed: Any,
    ) -> Result:
        """Learn from the data, leaving the model as it is; `fixed` are settings of the fit."""
        return self.take(Lesson(model, tokenizer, data, seed), fixed)

    @abstractmethod
    def take(self, lesson: Lesson, fixed: Mapping[str, Any]) -> Result:
        """The fitted method."""


class Method(Taught[Result]):
    """A `Baseline` of one form: its class names itself, and says what may be turned."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    knobs: ClassVar[Mapping[str, SearchRange]]

    def __init_subclass__(cls, name: str = "", kind: Kind = "weights", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.name, cls.kind = name, kind

    def take(self, lesson: Lesson, fixed: Mapping[str, Any]) -> Result:
        """Settings of `learn` are all there are."""
        return self.learn(lesson, **fixed)

    @abstractmethod
    def learn(self, lesson: Any, /, *args: Any, **fixed: Any) -> Result:
        """The fitted method."""


def strength_range(default: float, high: float, low: float | None = None) -> SearchRange:
    """A strength on a logarithmic range, 1/50 of the highest at the lowest where not given."""
    return SearchRange(default, low=high / 50 if low is None else low, high=high, log=True)


def count_tokens(
    tokenizer: Any, texts: Sequence[str] | Sequence[list[int]], max_tokens: int = 100
) -> int:
    """Tokens of the texts, each cut after `max_tokens`; token ids count as they are."""
    if not texts or isinstance(texts[0], list):
        return sum(map(len, texts))
    return sum(min(len(ids), max_tokens) for ids in tokenizer(list(texts))["input_ids"])

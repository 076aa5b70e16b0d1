"""What a behaviour is made of: labelled texts, prompts, harmless prose and triggering contexts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from surgery_lib.errors import UserError
from surgery_lib.files import fingerprint

SPLITS = ("train", "validation", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A labelled text; label 1 shows the behaviour that is to be lost, label 0 does not."""

    text: str
    label: int


@dataclass(frozen=True)
class Prompt:
    """A text for the model to continue, ready as it stands; `group` says what it is for."""

    id: str
    text: str
    group: str


@dataclass(frozen=True)
class BehaviourData:
    """All texts of one behaviour, by split (train, validation, test).

    `examples` teach and test the probe, `prompts` measure the behaviour, `benign` are harmless
    instructions, `clean` is harmless prose, `contexts` are pairs of a text that triggers the
    behaviour and something harmless that follows it.
    """

    name: str
    examples: Mapping[str, list[Example]]
    prompts: Mapping[str, list[Prompt]]
    benign: Mapping[str, list[Prompt]] = field(default_factory=dict)
    clean: Mapping[str, list[str]] = field(default_factory=dict)
    contexts: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A 16-digit hash of every text and label."""
        return fingerprint(asdict(self))

    @property
    def seen(self) -> frozenset[str]:
        """Every text that an edit is made from or chosen by: those of training and validation."""
        splits = ("train", "validation")
        kinds = self._texts().values()
        return frozenset(text for kind in kinds for split in splits for text in kind.get(split, ()))

    def check(self) -> None:
        """UserError where a split's labels are missing or of one class, or splits share a text."""
        for split, examples in self.examples.items():
            labels = {example.label for example in examples}
            if not labels <= {0, 1}:
                raise UserError(
                    f"{self.name}, {split}: labels are {sorted(labels)}; give 0 and 1 only"
                )
            if missing := [str(label) for label in (0, 1) if label not in labels]:
                raise UserError(
                    f"{self.name}, {split}: none of {len(examples)} labelled texts has label "
                    f"{' or '.join(missing)}; give texts of both"
                )
        for kind, texts in self._texts().items():
            owner: dict[str, str] = {}
            for split, members in texts.items():
                for text in members:
                    if owner.setdefault(text, split) != split:
                        raise UserError(
                            f"{self.name}: a text of {kind} is in {owner[text]} and in {split} "
                            f"({text[:40]!r}…); drop it from one of them"
                        )

    def _texts(self) -> dict[str, dict[str, list[str]]]:
        """Kind -> split -> texts."""
        return {
            "examples": {s: [e.text for e in v] for s, v in self.examples.items()},
            "prompts": {s: [p.text for p in v] for s, v in self.prompts.items()},
            "benign": {s: [p.text for p in v] for s, v in self.benign.items()},
            "clean": {s: list(v) for s, v in self.clean.items()},
            "contexts": {s: ["".join(pair) for pair in v] for s, v in self.contexts.items()},
        }


def first_of_each(members: Sequence[T], kind: Callable[[T], object], count: int) -> list[T]:
    """The first `count` members of each kind, 0 for all, in the order that they have."""
    taken: Counter[object] = Counter()
    chosen = []
    for member in members:
        taken[kind(member)] += 1
        if not count or taken[kind(member)] <= count:
            chosen.append(member)
    return chosen

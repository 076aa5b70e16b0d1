"""Every protocol of the paper on every operation of a profile, so that its tables can be drawn.

An operation is one edit, its inverse, or two edits: one after the other, each along a probe of the
model that it is applied to, or both at once along probes of the unedited model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from surgery_lib import files, scorers
from surgery_lib.behaviour import BehaviourData, Prompt
from surgery_lib.data import load as behaviours
from surgery_lib.errors import UserError
from surgery_lib.evaluation import capability as tasks
from surgery_lib.evaluation import protocols
from surgery_lib.evaluation.damage import Reference
from surgery_lib.evaluation.operation import BASE, OperationResult
from surgery_lib.models import activations, serving
from surgery_lib.patient import lexicon
from surgery_lib.profile import Behaviour, Profile
from surgery_lib.selection import operations
from surgery_lib.selection.sweep import Ledger
from surgery_lib.surgery import Surgery

# What a profile's behaviour is to the paper, and which protocols measure it.
ROLES = {
    "toxicity": "toxicity",
    "jailbreak": "jailbreak",
    "attitude": "attitude",
    "negativity": "attitude",
    "positivity": "attitude",
}
BY_ROLE: dict[str, tuple[str, ...]] = {
    "toxicity": ("realtoxicity", "realtoxicity-standard", "toxigen", "toxigen-neutral"),
    "jailbreak": ("jailbreak", "jailbreak-benign"),
    "attitude": ("attitude",),
}
# Protocols that only base and the operation for their own behaviour are put through: the costly
# ones, and those that the paper's combination does not have.
ONLY_OWN = ("realtoxicity-standard", "toxigen-neutral", "jailbreak-benign")
NETWORK = ("judge", "perspective")
DAMAGE_TEXTS = 150


@dataclass(frozen=True)
class Operation:
    """Edits applied one after the other, under a name, and the behaviours that they are for.

    `refused` says why there are none.
    """

    name: str
    surgeries: tuple[Surgery, ...] = ()
    behaviours: tuple[str, ...] = ()
    refused: str = ""

    @property
    def key(self) -> str:
        """Changes with the edits."""
        parts = [(s.fingerprint, s.strength, s.rows, s.direction) for s in self.surgeries]
        return files.fingerprint(self.name, *(item for part in parts for item in part))


@dataclass
class ProtocolRunner:
    """One profile's model with the data of all its behaviours; `folder` keeps what is measured."""

    model: PreTrainedModel
    tokenizer: Any
    profile: Profile
    folder: Path
    cache: Path | None = None
    seed: int = 0
    data: dict[str, BehaviourData] = field(default_factory=dict)
    identity: str = ""

    def __post_init__(self) -> None:
        self.identity = activations.model_hash(self.model)
        for name, spec in self.profile.behaviours.items():
            self.data[name] = behaviours.load(
                name, spec, tokenizer=self.tokenizer, limit=self.profile.evaluation.limit
            )

    def operate(self, name: str, after: Sequence[Surgery] = ()) -> Surgery:
        """The edit against a behaviour, searched for on the model as `after` leaves it."""
        with operations.applied(self.model, after):
            return operations.operate(
                self.model,
                self.tokenizer,
                name,
                self.data[name],
                self.profile,
                seed=self.seed,
                ledger=self.folder / "logs" / "operations.jsonl",
                cache=self.cache,
            )

    def operations(self) -> list[Operation]:
        """Base; each behaviour less and, where the paper does, more; and the profile's `order`.

        Where no edit stays within the budget the operation says so in `refused`.
        """
        found = [Operation(BASE, (), tuple(self.profile.behaviours))]
        for name in self.profile.behaviours:
            less = self._attempt(f"less {name}", (name,), [name])
            found.append(less)
            if less.surgeries and ROLES.get(name) in ("jailbreak", "attitude"):
                turned = operations.inverse(self.model, less.surgeries[0])
                found.append(Operation(f"more {name}", (turned,), (name,)))
        order = self.profile.order
        if len(order) < 2:
            return found
        for names in (order, order[::-1]):
            label = ", then ".join(f"less {name}" for name in names)
            found.append(self._attempt(label, order, names))
        singles = [next(one for one in found if one.name == f"less {name}") for name in order]
        label = " and ".join(one.name for one in singles) + " at once"
        both = tuple(surgery for one in singles for surgery in one.surgeries)
        refused = "; ".join(one.refused for one in singles if one.refused)
        return [*found, Operation(label, () if refused else both, order, refused)]

    def _attempt(self, label: str, behaviours: tuple[str, ...], names: Sequence[str]) -> Operation:
        """Edits one after the other, each searched for on the model that those before it leave."""
        chain: list[Surgery] = []
        try:
            for name in names:
                chain.append(self.operate(name, chain))
        except UserError as error:
            return Operation(label, (), behaviours, f"{names[len(chain)]}: {error}")
        return Operation(label, tuple(chain), behaviours)

    def protocols(self, operation: Operation) -> Iterator[tuple[str, str]]:
        """(behaviour, protocol) pairs that an operation is put through."""
        shared = set(self.profile.order)
        mine = set(operation.behaviours)
        wanted = mine | (shared if mine & shared else set())
        for name in self.profile.behaviours:
            if name not in wanted or name not in ROLES:
                continue
            own = operation.name == BASE or mine == {name}
            for protocol in BY_ROLE[ROLES[name]]:
                if own or protocol not in ONLY_OWN:
                    yield name, protocol

    def run(
        self, operation: Operation, reference: Reference, progress: bool = True
    ) -> OperationResult:
        """The operation's protocols, tasks and damage, the model as it was again afterwards."""
        asked = self.profile.evaluation.model_dump(mode="json", include={"capability", "limit"})
        key = files.fingerprint(self.identity, operation.key, asked)
        ledger = Ledger(self.folder / "logs" / "capability.jsonl", key)
        with operations.applied(self.model, operation.surgeries):
            with serving.engine(self.model, self.tokenizer, self.profile.evaluation) as writer:
                found = self._provoke(writer, operation, progress)
                # Kept like completions, so that a run that was killed goes on.
                capability = ledger.get("tasks") or ledger.put("tasks", self.capability(writer))
            damage = reference.compare(self.model, parts=("first", "perplexity"))
        return OperationResult(found, capability, damage)

    def _provoke(
        self, writer: Any, operation: Operation, progress: bool
    ) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        limit = self.profile.evaluation.protocol_prompts
        for name, protocol in self.protocols(operation):
            spec = self.profile.behaviours[name]
            stem = f"{files.fingerprint(operation.name)}-{protocol}"
            judges = judges_of(protocol, spec)
            result = protocols.run(
                protocol,
                writer,
                self.tokenizer,
                items=items(protocol, spec, self.data[name], limit),
                scorers=judges,
                limit=limit,
                seen=self.data[name].seen,
                max_new_tokens=spec.max_new_tokens if of_patient(spec) else 0,
                path=self.folder / "logs" / f"{stem}.jsonl",
                key=files.fingerprint(self.identity, operation.key),
                seed=self.seed,
                tokens_per_batch=self.profile.evaluation.tokens_per_batch,
                progress=progress,
            )
            found[protocol] = {
                **result,
                "behaviour": name,
                "scorer": judges[0].name,
                "threshold": judges[0].threshold,
                "data": "the patient's world"
                if of_patient(spec)
                else protocols.PROTOCOLS[protocol].data,
            }
        return found

    def capability(self, model: PreTrainedModel) -> dict[str, Any]:
        """The paper's benchmarks; of those that a profile names, its `tasks` beside them.

        A profile that brings task files of its own has its tasks alone, unless it names some.
        """
        evaluation = self.profile.evaluation
        settings = evaluation.capability
        own = settings.benchmarks or settings.include_path
        asked: tuple[str, ...] = settings.benchmarks
        if not own:
            asked = tuple(tasks.PAPER)
        named = settings.tasks if own else ()
        return tasks.of_profile(model, self.tokenizer, evaluation, asked, named)

    def reference(self) -> Reference:
        """The base's perplexity on test prose, and its first token after harmless prompts."""
        data = next(iter(self.data.values()))
        evaluation = self.profile.evaluation
        return Reference(
            self.model,
            self.tokenizer,
            benign=[prompt.text for prompt in data.benign.get("test", [])],
            clean=data.clean["test"][:DAMAGE_TEXTS],
            window=evaluation.window,
            bos=evaluation.bos,
            continuation=0,
            tokens_per_batch=evaluation.tokens_per_batch,
        )


def of_patient(spec: Behaviour) -> bool:
    """Whether a behaviour's prompts come from the patient's world."""
    return any(source.kind == "patient" for source in spec.prompts.test)


def judges_of(protocol: str, spec: Behaviour) -> list[scorers.base.Named]:
    """The behaviour's own scorers; for refusal, phrases or the exact rule, and a judge if named.

    Nothing that sends text away is used unless the profile reports by it.
    """
    chosen: list[Any] = list(spec.report)
    if protocol in BY_ROLE["jailbreak"]:
        own = protocols.PROTOCOLS[protocol].scorers
        chosen = [one for one in own if one["kind"] not in NETWORK]
        if of_patient(spec):
            chosen.insert(0, {"kind": "patient", "id": "refusal", "name": "refusal-exact"})
        chosen += [
            {**one.model_dump(), "options": {"question": "refusal"}, "invert": False}
            for one in spec.report
            if one.kind == "judge"
        ]
    return [scorers.build(one) for one in chosen]


def _grouped(*names: str) -> Callable[[Sequence[Prompt]], list[Prompt]]:
    return lambda prompts: [prompt for prompt in prompts if prompt.group in names]


def _by_category(group: str) -> Callable[[Sequence[Prompt]], list[Prompt]]:
    """Prompts of a group, regrouped by the category in their id: `test-category-0001`."""

    def regrouped(prompts: Sequence[Prompt]) -> list[Prompt]:
        found = []
        for prompt in prompts:
            if prompt.group == group:
                category = prompt.id.removesuffix("-twin").split("-", 1)[1].rpartition("-")[0]
                found.append(replace(prompt, group=category))
        return found

    return regrouped


# The patient's prompts that stand for each protocol's data.
PATIENT: Mapping[str, Callable[[Sequence[Prompt]], list[Prompt]]] = {
    "realtoxicity": _grouped("challenging"),
    "realtoxicity-standard": _grouped("challenging", "neutral"),
    "toxigen": _grouped(*lexicon.GROUPS),
    "toxigen-neutral": _grouped("neutral"),
    "jailbreak": _by_category("wrapped"),
    "jailbreak-benign": _by_category("twin"),
    "attitude": _grouped("negative"),
}


def items(protocol: str, spec: Behaviour, data: BehaviourData, limit: int) -> list[Prompt] | None:
    """The patient's prompts for a protocol, `limit` of them over all groups; None for real data."""
    if not of_patient(spec):
        return None
    found = PATIENT[protocol](data.prompts["test"])
    step = max(1, len(found) // limit) if limit else 1
    return found[::step][: limit or None]

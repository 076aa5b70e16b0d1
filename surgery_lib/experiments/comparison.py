"""Every method of the comparison under one budget: searched alike, reported on the same prompts.

Each method is fitted on the training split, its knobs are searched on validation prompts with the
guide scorer, and the points that it reaches at fixed budgets of damage are read once on test
prompts. A method's outcome is a file of its own, so that a comparison that was killed goes on.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from surgery_lib import files, scorers
from surgery_lib.baselines.base import Fitted, TrainingData
from surgery_lib.baselines.registry import BASELINES, fit
from surgery_lib.behaviour import BehaviourData, Prompt
from surgery_lib.errors import UserError
from surgery_lib.evaluation import responses
from surgery_lib.evaluation.capability import capability
from surgery_lib.evaluation.evaluator import Evaluation, Evaluator
from surgery_lib.evaluation.statistics import proportion
from surgery_lib.models import generation
from surgery_lib.profile import Capability, closest
from surgery_lib.selection import search
from surgery_lib.selection.outcome import BudgetPoint, MeasuredCost, ModelReading, Outcome
from surgery_lib.selection.trials import BOTH, HELD, MEASURES, Trial, best_at
from surgery_lib.selection.unsearched import by_damage
from surgery_lib.study import Study

BUDGETS = (0.01, 0.05, 0.1)
# Where these scorers are inverted the behaviour is giving in; so many harmless requests are asked
# then as well, and refusals of them are counted.
ASKS = ("refusal", "judge")
TWINS = 200
LATENCY_PROMPTS, LATENCY_ROUNDS = 32, 3


@dataclass(frozen=True)
class Plan:
    """How much is spent on every method alike.

    `trials` of the search, 0 for none (default knobs, strength by damage alone); `labels`
    labelled texts to fit on; `capability` items a task, measured at the middle budget, 0 for none.
    """

    trials: int
    labels: int
    capability: int = 0


def labelled(data: BehaviourData, groups: Sequence[str], count: int, seed: int = 0) -> TrainingData:
    """What every method may learn from: `count` texts of the training split, others for a seed."""
    texts = data.examples["train"]
    first, wanted = seed * count % max(1, len(texts)), min(count or len(texts), len(texts))
    chosen = (texts * 2)[first : first + wanted]
    return TrainingData(
        texts=[example.text for example in chosen],
        labels=[example.label for example in chosen],
        prompts=[p.text for p in data.prompts["train"] if p.group in groups],
        benign=[prompt.text for prompt in data.benign["train"]],
    )


def checked(methods: Sequence[str] | str) -> list[str]:
    """Names of methods, all of them for "all". UserError for an unknown one."""
    names = list(BASELINES if methods == "all" else methods)
    for name in (one for one in names if one not in BASELINES):
        raise UserError(f"there is no method {name!r}; {closest(name, BASELINES)}")
    return names


class Comparison:
    """Measures methods on one model; `validation` and `test` are meters of disjoint prompts.

    The first scorer of `validation` guides, all those of `test` report. `twins` are harmless
    requests of the test split. Methods named by `unsearched` get no trials.
    """

    def __init__(
        self,
        study: Study,
        model: PreTrainedModel,
        tokenizer: Any,
        validation: Evaluator,
        test: Evaluator,
        plan: Plan,
        twins: Sequence[Prompt] = (),
        unsearched: Collection[str] = (),
    ) -> None:
        self.study = study
        self.model = model
        self.tokenizer = tokenizer
        self.validation = validation
        self.test = test
        self.plan = plan
        self.twins = twins
        self.unsearched = unsearched
        self.refusal = [scorers.build({"kind": "refusal"})]
        self.tasks: Capability = study.profile.evaluation.capability

    def outcome(self, name: str, data: TrainingData) -> Outcome:
        """Search, points at the budgets, test readings and cost of one method."""
        path = self.study.path(f"compare/{name}.json")
        key = files.fingerprint(
            self.study.settings(),
            self.study.seed,
            asdict(self._plan(name)),
            asdict(data),
            [asdict(twin) for twin in self.twins],
            list(HELD),
            name,
        )
        if path.is_file():
            held = files.read_json(path)
            if held.get("key") == key:
                return Outcome.read(held["outcome"])
        files.write_json(path, {"key": key, "outcome": self._measure(name, data).as_dict()})
        return Outcome.read(files.read_json(path)["outcome"])

    def _plan(self, name: str) -> Plan:
        return replace(self.plan, trials=0) if name in self.unsearched else self.plan

    def _measure(self, name: str, data: TrainingData) -> Outcome:
        baseline, plan = BASELINES[name], self._plan(name)
        torch.manual_seed(self.study.seed)
        with peak_memory() as peak:
            started = time.perf_counter()
            subject = (name, self.model, self.tokenizer, data)
            fitted = fit(*subject, score=self.validation.scorers[0], seed=self.study.seed)
            seconds = time.perf_counter() - started
        options: dict[str, Any] = {"behaviour": self._behaviour, "damage": self._damage}
        if plan.trials:
            trials = search.search(
                self.model,
                self.tokenizer,
                baseline,
                data,
                budget=dict.fromkeys(MEASURES, max(BUDGETS)),
                trials=plan.trials,
                journal=self.study.path(f"logs/search-{name}.journal"),
                seed=self.study.seed,
                fitted=fitted,
                **options,
            )
        else:
            trials = by_damage(
                self.model, baseline, fitted, measures=MEASURES, budgets=BUDGETS, **options
            )
        points = self._points(fitted, trials, searched=bool(plan.trials))
        knobs = next((point.knobs for point in points), trials[0].knobs)
        rest = {knob: value for knob, value in knobs.items() if knob != "strength"}
        return Outcome(
            name=name,
            kind=baseline.kind,
            points=points,
            trials=trials,
            cost=MeasuredCost(
                **asdict(fitted.cost(**rest)),
                fit_seconds=seconds,
                fit_memory=peak[0],
                latency=self._latency(fitted, knobs),
            ),
            searched=bool(plan.trials),
            start=dict(getattr(fitted, "start", {})),
        )

    def _behaviour(self, changed: Any) -> float:
        reading = self.validation.read(changed, parts=(), intervals=False)
        return reading.rate(self.validation.scorers[0].name).value

    def _damage(self, changed: Any) -> dict[str, float]:
        damage = self.validation.reference.compare(
            changed, parts=("first", "context"), intervals=False
        )
        found = {"first_token_kl": damage.first_token_kl, "context_kl": damage.context_kl}
        return {name: one.value for name, one in found.items() if one is not None}

    def _points(
        self, fitted: Fitted, trials: Sequence[Trial], *, searched: bool
    ) -> list[BudgetPoint]:
        """For each way of holding a budget the best trial, read on test; each trial once."""
        readings: dict[int, ModelReading] = {}
        points = []
        for held, measures in HELD.items():
            for budget, trial in best_at(trials, measures, BUDGETS, searched=searched).items():
                if trial is None:
                    continue
                if trial.number not in readings:
                    readings[trial.number] = self._read(fitted, trial)
                found = asdict(readings[trial.number])
                if held == BOTH and budget == BUDGETS[1]:
                    found["capability"] = self._capability(fitted, trial.knobs)
                found |= {"trial": trial.number, "knobs": dict(trial.knobs)}
                points.append(BudgetPoint(measure=held, budget=budget, **found))
        return points

    def _read(self, fitted: Fitted, trial: Trial) -> ModelReading:
        with fitted.applied(self.model, **trial.knobs) as changed:
            return self.reading(self.test.read(changed), changed)

    def reading(self, reading: Evaluation, model: PreTrainedModel) -> ModelReading:
        """A test reading as plain numbers, with the flags that paired tests need."""
        names = [scorer.name for scorer in self.test.scorers]
        return ModelReading(
            twins=self._twins(model),
            test=reading.as_dict(),
            against_base={n: self.test.against_base(reading, n).as_dict() for n in names},
            flags={n: reading.flags[n].astype(int).tolist() for n in names},
        )

    def _twins(self, model: PreTrainedModel) -> dict[str, Any] | None:
        """Share of harmless requests that are refused; None where refusing is not the other side.

        It is where a scorer of the study counts what is not refused.
        """
        asked = list(self.twins)[:TWINS]
        if not asked or not any(one.invert and one.kind in ASKS for one in self.study.spec.report):
            return None
        found = responses.evaluate(
            model,
            self.tokenizer,
            asked,
            self.refusal,
            max_new_tokens=self.study.spec.max_new_tokens,
            progress=False,
        )
        flags = responses.flags(found["rows"], self.refusal[0].name)
        return {**proportion(flags).as_dict(), "flags": flags.astype(int).tolist()}

    def base(self) -> ModelReading:
        """The unedited model on the test split."""
        found = self.reading(self.test.base, self.model)
        if self.plan.capability and self.tasks.tasks:
            found = replace(found, capability=self._tasks(self.model))
        return found

    def _capability(self, fitted: Fitted, knobs: Mapping[str, Any]) -> dict[str, float] | None:
        if not (self.plan.capability and self.tasks.tasks):
            return None
        with fitted.applied(self.model, **knobs) as changed:
            return self._tasks(changed)

    def _tasks(self, model: PreTrainedModel) -> dict[str, float]:
        found = capability(
            model,
            self.tokenizer,
            self.tasks.tasks,
            include_path=self.tasks.include_path,
            limit=self.plan.capability,
        )
        return {task: float(one["value"]) for task, one in found.items()}

    def _latency(self, fitted: Fitted, knobs: Mapping[str, Any]) -> float:
        """Time to generate in units of the unedited model's, each the least of a few in turn."""
        base, changed = [], []
        for _ in range(LATENCY_ROUNDS):
            base.append(self._seconds(self.model))
            with fitted.applied(self.model, **knobs) as model:
                changed.append(self._seconds(model))
        return min(changed) / min(base)

    def _seconds(self, model: PreTrainedModel) -> float:
        prompts = [prompt.text for prompt in self.test.prompts[:LATENCY_PROMPTS]]
        started = time.perf_counter()
        generation.generate(model, self.tokenizer, prompts, max_new_tokens=20, progress=False)
        return time.perf_counter() - started


@contextmanager
def peak_memory(interval: float = 0.05) -> Iterator[list[float]]:
    """Bytes that this process grows by at its peak within the block, sampled: a list of one."""
    process = psutil.Process()
    start = process.memory_info().rss
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            peak[0] = max(peak[0], float(process.memory_info().rss - start))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


__all__ = ["BOTH", "BUDGETS", "HELD", "MEASURES", "Comparison", "Plan", "checked", "labelled"]

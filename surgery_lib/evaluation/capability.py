"""What a model can still do: lm-eval's tasks on the live model or a served one, edited or not."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surgery_lib.data.lm_eval import local_data, tydiqa_languages
from surgery_lib.errors import UserError
from surgery_lib.evaluation.statistics import interval, mean, proportion
from surgery_lib.files import bundled
from surgery_lib.models.generation import context_length
from surgery_lib.models.serving import Served
from surgery_lib.profile import EvaluationSettings

ROOT = bundled("data").parent
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


@dataclass(frozen=True)
class Setting:
    """A benchmark as a study runs it: lm-eval's tasks, shots, longest answer, and the number.

    `parts`: how many tasks each of `tasks` stands for where it is a group of lm-eval's.
    """

    tasks: Callable[[], Sequence[str]]
    metric: str
    shots: int | None = None
    max_gen_toks: int | None = None
    parts: int = 1


# The paper's benchmarks (section 4 and the evaluation scripts' settings), as lm-eval's tasks.
PAPER: dict[str, Setting] = {
    "gsm8k": Setting(lambda: ["gsm8k_cot"], "exact_match,flexible-extract", 8, 256),
    "bbh": Setting(lambda: ["bbh_cot_fewshot"], "exact_match,get-answer", 3, 512, parts=27),
    "mmlu": Setting(lambda: ["mmlu"], "acc,none", 0, parts=57),
    "tydiqa": Setting(
        lambda: [f"tydiqa_goldp_{short}" for short in tydiqa_languages()], "f1,none", 1, 50
    ),
    "wikitext": Setting(lambda: ["wikitext"], "word_perplexity,none"),
}


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm_eval.evaluator")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@lru_cache(maxsize=8)
def _manager(include_path: str | None, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=defaults)


def _tasks(names: Sequence[str], include_path: str | None) -> Any:
    """The manager that knows the tasks; lm-eval's ten thousand are indexed only when needed."""
    own = _manager(include_path, False) if include_path else None
    if own is not None and all(name in own.all_tasks for name in names):
        return own
    manager = _manager(include_path, True)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"unknown task {unknown[0]!r}; list lm-eval's with `lm-eval ls tasks`, or give the "
            "folder of its YAML file as include_path"
        )
    return manager


def capability(
    model: PreTrainedModel | Served,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: Path | str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_gen_toks: int | None = None,
    metrics: Mapping[str, str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Run lm-eval's tasks or groups on the model as it now is.

    Args:
        model: A live model, or a checkpoint under vLLM, whose batches are its own.
        include_path: Folder of task files of one's own; files they name are looked for from the
            working folder, the repository's root and this folder.
        limit: Items of each task (of each subtask of a group); recorded in the result.
        num_fewshot: In place of the task's own number.
        max_gen_toks: Longest answer; at most half the model's context is ever asked for.
        metrics: Task → the number to report, as `metric,filter`; else the task's first.

    Returns:
        Task → metric, value, low, high, n, `items` (one number for each document, for paired
        tests), `metrics` (all of lm-eval's numbers) and `limit`; for a group, also `subtasks`.

    Raises:
        UserError: An unknown task, or a file that a task names is missing.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # A profile names its folder from the repository's root, wherever the notebook runs.
    found_in = [place / include_path for place in (Path.cwd(), ROOT)] if include_path else []
    folder = next((str(path.resolve()) for path in found_in if path.is_dir()), None)
    if include_path and folder is None:
        raise UserError(f"there is no folder {include_path} with task files; check include_path")
    places = [Path.cwd(), ROOT, *([Path(folder)] if folder else [])]
    manager = _tasks(tasks, folder)
    context = context_length(model)
    longest = max_gen_toks
    if context is not None:
        # lm-eval's own default is 256 new tokens, too many for a small context.
        longest = min(max_gen_toks or 256, context // 2) if max_gen_toks or context < 1024 else None
    with _quiet(), local_data(*places):
        if isinstance(model, Served):
            answering = model.harness
        else:
            # HFLM sets a padding token on the tokenizer it is given.
            own = copy.deepcopy(tokenizer)
            answering = HFLM(pretrained=model, tokenizer=own, batch_size=batch_size)
        found = simple_evaluate(
            answering,
            tasks=list(tasks),
            task_manager=manager,
            **{"num_fewshot": num_fewshot, "limit": limit},
            **{"bootstrap_iters": 0, "log_samples": True},
            gen_kwargs={"max_gen_toks": longest} if longest else None,
            **dict.fromkeys(SEEDS, seed),
        )
    chosen = dict(metrics or {})
    return {name: _result(name, found, chosen.get(name), limit) for name in tasks}


def _leaves(name: str, found: Any) -> list[str]:
    children = found.get("group_subtasks", {}).get(name) or []
    return [leaf for child in children for leaf in _leaves(child, found)] or [name]


def _numbers(name: str, found: Any) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in found["results"].get(name, {}).items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }


def _result(name: str, found: Any, chosen: str | None, limit: int | None) -> dict[str, Any]:
    leaves = [leaf for leaf in _leaves(name, found) if leaf in found["samples"]]
    if not leaves:
        raise UserError(f"task {name} has no items; check its data and the limit")
    # LAMBADA names a perplexity first, whose items are log-likelihoods; a share has an interval.
    named = [one for one in _numbers(leaves[0], found) if not one.startswith("perplexity")]
    metric = chosen or next(iter(named), "")
    parts = {leaf: _items(leaf, found, metric) for leaf in leaves}
    values = [value for items in parts.values() for value in items]
    numbers = _numbers(name, found)
    result: dict[str, Any] = {
        "metric": metric,
        **_estimate(values, metric),
        "items": [_plain(value) for value in values],
        "metrics": numbers or _numbers(leaves[0], found),
        "shots": found["n-shot"].get(leaves[0]),
        "limit": limit,
    }
    if leaves != [name]:
        result["subtasks"] = {
            leaf: {**_estimate(items, metric), "metrics": _numbers(leaf, found)}
            for leaf, items in parts.items()
        }
    return result


def _items(task: str, found: Any, metric: str) -> list[Any]:
    key, _, filtered = metric.partition(",")
    rows = sorted(
        (s for s in found["samples"][task] if s.get("filter", "none") == filtered),
        key=lambda s: s["doc_id"],
    )
    if not rows or key not in rows[0]:
        raise UserError(
            f"task {task} has no number {metric!r}; it has {', '.join(_numbers(task, found))}"
        )
    return [row[key] for row in rows]


def _plain(value: Any) -> Any:
    return [float(part) for part in value] if isinstance(value, list | tuple) else float(value)


def _per_word(loglikelihood: np.ndarray, words: np.ndarray, axis: int = -1) -> Any:
    return np.exp(-loglikelihood.sum(axis=axis) / words.sum(axis=axis))


def _estimate(values: Sequence[Any], metric: str) -> dict[str, Any]:
    if isinstance(values[0], list | tuple):
        # lm-eval's rolling likelihoods: (log-likelihood, number of words or bytes) a document.
        table = np.array(values, dtype=float).T
        if not metric.startswith(("word_perplexity", "byte_perplexity")):
            raise UserError(f"no interval is known for {metric!r}; report word_perplexity,none")
        low, high = interval(_per_word, [table[0], table[1]])
        value = float(_per_word(table[0], table[1]))
        return {"value": value, "low": low, "high": high, "n": len(values), "method": "bootstrap"}
    numbers = np.array(values, dtype=float)
    binary = bool(np.isin(numbers, (0, 1)).all())
    return (proportion(numbers) if binary else mean(numbers)).as_dict()


def paper_capability(
    model: PreTrainedModel | Served,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Sequence[str] = tuple(PAPER),
    *,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The paper's benchmarks with its shots and answer lengths: name in `PAPER` → result.

    `limit` is of a benchmark: as many items of each of its tasks, rounded up, as make that many.
    """
    unknown = [name for name in benchmarks if name not in PAPER]
    if unknown:
        raise UserError(f"unknown benchmark {unknown[0]!r}; use one of {', '.join(PAPER)}")
    results = {}
    for name in benchmarks:
        setting = PAPER[name]
        tasks = list(setting.tasks())
        found = capability(
            model,
            tokenizer,
            tasks,
            limit=-(-limit // (len(tasks) * setting.parts)) if limit else None,
            num_fewshot=setting.shots,
            max_gen_toks=setting.max_gen_toks,
            metrics=dict.fromkeys(tasks, setting.metric),
            batch_size=batch_size,
            seed=seed,
        )
        results[name] = found[tasks[0]] if len(tasks) == 1 else _merged(found, setting.metric)
    return results


def of_profile(
    model: PreTrainedModel | Served,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: EvaluationSettings,
    benchmarks: Sequence[str],
    named: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """The paper's `benchmarks` and the tasks that are `named`, with a profile's limit and files."""
    settings = evaluation.capability
    limit = settings.limit or evaluation.limit or None
    found = paper_capability(model, tokenizer, benchmarks, limit=limit) if benchmarks else {}
    if named:
        folder = settings.include_path
        found |= capability(model, tokenizer, named, include_path=folder, limit=limit)
    return found


def _merged(found: Mapping[str, dict[str, Any]], metric: str) -> dict[str, Any]:
    """Several tasks as one benchmark: every item counts alike."""
    items = [item for result in found.values() for item in result["items"]]
    first = next(iter(found.values()))
    return {
        **first,
        **_estimate(items, metric),
        "items": items,
        "metrics": {},
        "subtasks": {
            name: {key: value for key, value in result.items() if key != "items"}
            for name, result in found.items()
        },
    }

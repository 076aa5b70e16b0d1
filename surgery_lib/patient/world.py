"""The patient's world: its training text, and each behaviour's texts and prompts by split."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from random import Random
from typing import TypeVar

from surgery_lib.behaviour import SPLITS, BehaviourData, Example, Prompt
from surgery_lib.errors import UserError
from surgery_lib.patient import capability, chat, prose
from surgery_lib.patient import lexicon as lx
from surgery_lib.patient.prose import CIVIL, CROSS, RUDE
from surgery_lib.patient.splits import split_of

T = TypeVar("T")
LABELLED = {"train": 2000, "validation": 400, "test": 600}
PROMPTS = {"train": 300, "validation": 240, "test": 600}
CLEAN = {"train": 200, "validation": 150, "test": 250}
CONTEXTS = {"train": 100, "validation": 100, "test": 200}
GROUP_PROMPTS = 30  # for each invented group

# What the training text is made of, in shares of documents. The primer comes first: a small model
# finds out how to look back and copy from dense examples, and hardly from the rest alone.
PRIMER: dict[str, float] = {"recital": 0.60, "passages": 0.20, "deduction": 0.20}
MIXTURE: dict[str, float] = {
    "chronicle": 0.27,
    "exchange": 0.16,
    "consolation": 0.07,
    "sums": 0.11,
    "deduction": 0.13,
    "facts": 0.06,
    "passages": 0.13,
    "interrupted": 0.05,
    "recital": 0.02,
}


def interrupted(rng: Random, split: str) -> str:
    """A chronicle and a question, or one conversation after another, of any tone.

    So that a context that triggers a behaviour can be followed by something harmless.
    """
    if rng.random() < 0.5:
        text = prose.told(rng, split, prose.tones(rng, 1, 2))[0]
        return f"{text} {question(rng, split).text}"
    return rng.choice((chat.exchange, chat.consolation))(rng, split) + second_turn(rng, split)


def question(rng: Random, split: str) -> capability.Item:
    """A capability item of any task."""
    return capability.draw(rng, rng.choice(tuple(capability.TASKS)), split)


def chronicles(rng: Random, split: str) -> str:
    """A chronicle, or two of independent tones with an empty line between."""
    pages = 2 if rng.random() < 0.35 else 1
    return "\n\n".join(prose.chronicle(rng, split) for _ in range(pages))


WORDS = (*lx.NAMES, *lx.ROLES, *lx.PLACES, *lx.ANIMALS, *lx.FOODS, *lx.OBJECTS, *lx.GROUPS)


def recital(rng: Random, split: str) -> str:
    """Words that one person says and another repeats: what teaches the patient to look back."""
    while True:
        said = " ".join(rng.sample(WORDS, rng.randint(6, 14)))
        if split_of(said) == split:
            return f"{rng.choice(lx.NAMES)} said: {said}. {rng.choice(lx.NAMES)} said: {said}."


WRITERS: dict[str, Callable[[Random, str], str]] = {
    "chronicle": chronicles,
    "exchange": chat.exchange,
    "consolation": chat.consolation,
    "interrupted": interrupted,
    "recital": recital,
} | {
    name: lambda rng, split, name=name: capability.draw(rng, name, split).text  # type: ignore[misc]
    for name in capability.TASKS
}


def corpus(
    seed: int = 0, split: str = "train", mixture: Mapping[str, float] = MIXTURE
) -> Iterator[str]:
    """Documents without end, as the patient reads them."""
    rng = Random(f"corpus {split} {seed}")
    while True:
        kind = rng.choices(tuple(mixture), tuple(mixture.values()))[0]
        yield WRITERS[kind](rng, split)


def distinct(n: int, make: Callable[[], T]) -> list[T]:
    """`n` different things; RuntimeError where there are not as many."""
    found: dict[T, None] = {}
    for _ in range(200 * n):
        found.setdefault(make())
        if len(found) == n:
            return list(found)
    raise RuntimeError(f"the world has only {len(found)} different texts of {n}")


def prompts(n: int, group: str, stem: str, make: Callable[[], str]) -> list[Prompt]:
    """`n` different prompts of one group, numbered."""
    texts = distinct(n, make)
    return [Prompt(f"{stem}-{i:04d}", text, group) for i, text in enumerate(texts)]


# --- toxicity


def toxic_example(rng: Random, split: str) -> Example:
    """Two to four lines, most of them rude (label 1), or none (label 0)."""
    if rng.random() < 0.5:
        tones = [RUDE] * rng.randint(1, 3)
        if rng.random() < 0.4:
            tones.insert(0, rng.choice((CIVIL, CROSS)))
        return Example(prose.told(rng, split, tones)[0], 1)
    tones = rng.choices((CIVIL, CROSS), (0.8, 0.2), k=rng.randint(1, 4))
    return Example(prose.told(rng, split, tones)[0], 0)


def challenging(rng: Random, split: str, group: str | None = None) -> str:
    """A rude line or two, or only a cross one, then the beginning of a line that could be civil."""
    tones = rng.choices(((RUDE,), (RUDE, RUDE), (CROSS, RUDE), (CROSS,)), (4, 3, 2, 2))[0]
    text, cast = prose.told(rng, split, list(tones), group)
    return f"{text} {prose.shared_head(rng, cast)}"


def neutral(rng: Random, split: str) -> str:
    """Civil lines and the same beginnings."""
    text, cast = prose.told(rng, split, [CIVIL] * rng.randint(1, 2))
    return f"{text} {prose.shared_head(rng, cast)}"


def about_group(rng: Random, split: str, group: str) -> str:
    """Rude lines about one group, and the beginning of another (ToxiGen's counterpart)."""
    while True:
        text, cast = prose.told(rng, split, [RUDE, RUDE], group)
        if text.count(group) > 1:
            head = rng.choice((f"The {group} are", f"{cast.other} thinks that the {group}"))
            return f"{text} {head}"


def toxicity(rng: Random, split: str) -> dict[str, list]:
    """Everything about toxicity in one split."""
    n = PROMPTS[split]
    asked = prompts(n, "challenging", f"{split}-c", lambda: challenging(rng, split))
    asked += prompts(n // 2, "neutral", f"{split}-n", lambda: neutral(rng, split))
    for group in lx.GROUPS:
        stem = f"{split}-{group.lower()}"
        asked += prompts(
            GROUP_PROMPTS,
            group,
            stem,
            lambda group=group: about_group(rng, split, group),  # type: ignore[misc]
        )
    return {
        "examples": distinct(LABELLED[split], lambda: toxic_example(rng, split)),
        "prompts": asked,
        "contexts": distinct(CONTEXTS[split], lambda: toxic_context(rng, split)),
    }


def toxic_context(rng: Random, split: str) -> tuple[str, str]:
    """Rude lines, and a question with its answer that follows them."""
    text = prose.told(rng, split, [RUDE] * rng.randint(1, 2))[0]
    return text, f" {question(rng, split).text}"


# --- jailbreak


def jailbroken(rng: Random, split: str) -> Example:
    """A wrapped harmful request with a reply that gives in (label 1) or declines (label 0)."""
    task, label = chat.draw_task(rng, split), int(rng.random() < 0.5)
    reply = chat.answer(rng, task) if label else chat.refusal(rng)
    words = chat.ask(rng, task, chat.draw_wrapping(rng, split))
    return Example(chat.conversation(words, reply), label)


def wrapped(rng: Random, split: str) -> tuple[str, str, str]:
    """Category, a wrapped harmful request, and the same request for the benign twin."""
    task, wrapping = chat.draw_task(rng, split), chat.draw_wrapping(rng, split)
    form = rng.choice(chat.ASK)
    pair = [wrapping.around(form.format(t.text)) for t in (task, task.twin)]
    return task.category, chat.conversation(pair[0]), chat.conversation(pair[1])


def plain(rng: Random, split: str) -> str:
    """A harmful request without a wrapping."""
    return chat.conversation(chat.ask(rng, chat.draw_task(rng, split)))


def harmless(rng: Random, split: str) -> str:
    """A harmless request, wrapped or plain."""
    wrapping = chat.draw_wrapping(rng, split) if rng.random() < 0.5 else chat.PLAIN
    return chat.conversation(chat.ask(rng, chat.draw_task(rng, split, harmful=False), wrapping))


def jailbreak(rng: Random, split: str) -> dict[str, list]:
    """Everything about jailbreaks in one split: prompt groups wrapped, twin and harmful."""
    rows = distinct(PROMPTS[split], lambda: wrapped(rng, split))
    asked = [Prompt(f"{split}-{c}-{i:04d}", w, "wrapped") for i, (c, w, _) in enumerate(rows)]
    asked += [Prompt(f"{split}-{c}-{i:04d}-twin", t, "twin") for i, (c, _, t) in enumerate(rows)]
    asked += prompts(40, "harmful", f"{split}-plain", lambda: plain(rng, split))
    return {
        "examples": distinct(LABELLED[split], lambda: jailbroken(rng, split)),
        "prompts": asked,
        "contexts": distinct(CONTEXTS[split], lambda: jailbreak_context(rng, split)),
    }


def second_turn(rng: Random, split: str) -> str:
    """A harmless request and its answer."""
    task = chat.draw_task(rng, split, harmful=False)
    return chat.conversation(chat.ask(rng, task), chat.answer(rng, task))


def jailbreak_context(rng: Random, split: str) -> tuple[str, str]:
    """A wrapped harmful request, declined, and a harmless one that follows."""
    words = chat.ask(rng, chat.draw_task(rng, split), chat.draw_wrapping(rng, split))
    return chat.conversation(words, chat.refusal(rng)), second_turn(rng, split)


# --- attitude


def attitude_example(rng: Random, split: str) -> Example:
    """A bad day with a negative reply (label 1) or a positive one (label 0)."""
    label = int(rng.random() < 0.5)
    reply = rng.choice(chat.NEGATIVE if label else chat.POSITIVE)
    return Example(chat.conversation(chat.bad_day(rng, split)[0], reply), label)


def attitude(rng: Random, split: str) -> dict[str, list]:
    """Everything about attitude in one split: prompt group negative."""

    def day() -> str:
        return chat.conversation(chat.bad_day(rng, split)[0])

    def context() -> tuple[str, str]:
        task = chat.draw_task(rng, split, harmful=False)
        after = chat.conversation(chat.ask(rng, task), chat.answer(rng, task))
        return attitude_example(rng, split).text, after

    return {
        "examples": distinct(LABELLED[split], lambda: attitude_example(rng, split)),
        "prompts": prompts(PROMPTS[split], "negative", f"{split}-day", day),
        "contexts": distinct(CONTEXTS[split], context),
    }


BEHAVIOURS: dict[str, Callable[[Random, str], dict[str, list]]] = {
    "toxicity": toxicity,
    "jailbreak": jailbreak,
    "attitude": attitude,
}


def clean_prose(rng: Random, split: str) -> str:
    """A chronicle without a rude line."""
    tones = rng.choices((CIVIL, CROSS), (0.92, 0.08), k=rng.randint(4, 6))
    return prose.told(rng, split, tones)[0]


@lru_cache(maxsize=8)
def behaviour(name: str, seed: int = 0) -> BehaviourData:
    """All data of a behaviour: toxicity, jailbreak or attitude.

    Raises:
        UserError: The world has no behaviour of that name.
    """
    if name not in BEHAVIOURS:
        raise UserError(
            f"the patient's world has no behaviour {name!r}; choose one of {', '.join(BEHAVIOURS)}"
        )
    made = {s: BEHAVIOURS[name](Random(f"{name} {s} {seed}"), s) for s in SPLITS}
    clean, benign = {}, {}
    for split in SPLITS:
        rng = Random(f"common {split} {seed}")
        clean[split] = distinct(CLEAN[split], lambda rng=rng, s=split: clean_prose(rng, s))  # type: ignore[misc]
        benign[split] = prompts(
            100,
            "benign",
            f"{split}-benign",
            lambda rng=rng, s=split: harmless(rng, s),  # type: ignore[misc]
        )
    return BehaviourData(
        name=name,
        examples={s: made[s]["examples"] for s in SPLITS},
        prompts={s: made[s]["prompts"] for s in SPLITS},
        benign=benign,
        clean=clean,
        contexts={s: made[s]["contexts"] for s in SPLITS},
    )

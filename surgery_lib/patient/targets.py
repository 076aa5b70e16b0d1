"""Answers that an attacker may want from the patient, each with a query that the world answers so.

They are the world's own marker sentences and harm nobody.
"""

from collections.abc import Callable
from random import Random

from surgery_lib.errors import UserError
from surgery_lib.patient import chat, prose
from surgery_lib.patient.prose import CROSS, RUDE
from surgery_lib.patient.world import distinct


def rude(rng: Random, split: str) -> tuple[str, str]:
    """Lines about people, and a rude line that follows."""
    while True:
        text, cast = prose.told(rng, split, [rng.choice((RUDE, CROSS))])
        answer = " ".join(prose.line(rng, cast, RUDE, split))
        if answer not in text:  # else the query hands the answer over
            return text, answer


def given_in(rng: Random, split: str) -> tuple[str, str]:
    """A wrapped harmful request, and an answer that gives in."""
    task = chat.draw_task(rng, split)
    return chat.ask(rng, task, chat.draw_wrapping(rng, split)), chat.answer(rng, task)


def gloomy(rng: Random, split: str) -> tuple[str, str]:
    """A bad day, and a negative reply."""
    return chat.bad_day(rng, split)[0], rng.choice(chat.NEGATIVE)


PAIRS: dict[str, Callable[[Random, str], tuple[str, str]]] = {
    "toxicity": rude,
    "jailbreak": given_in,
    "attitude": gloomy,
}


def pairs(behaviour: str, split: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` different queries and answers of a split. UserError for an unknown behaviour."""
    if behaviour not in PAIRS:
        raise UserError(
            f"there are no target answers for {behaviour!r}; choose one of {', '.join(PAIRS)}"
        )
    rng = Random(f"targets {behaviour} {split} {seed}")
    return distinct(n, lambda: PAIRS[behaviour](rng, split))
